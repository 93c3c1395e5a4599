"""What a run writes while it runs: metrics.jsonl, TensorBoard, one live line, and the last line.

Rows of metrics.jsonl are {"step", "kind": "train" | "eval", name: number, ...}. Names that the
report knows: reward, correct, length, truncated, zero_variance, entropy, loss, grad_norm,
clip_low, clip_high, kl, max_ratio, logp_gap, tokens, lr, reward_failed, compiles, time_sample,
time_verify, time_score, time_update, time_total; and in eval rows eval_accuracy,
eval_accuracy/<label>, eval_problems, eval_problems/<label>, eval_pass@k, eval_maj@k,
eval_truncated. Any other name is kept and plotted too.
"""

import json
import math
import shutil
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_jax.errors import UserError
from grpo_jax.run import atomic

Z95 = 1.959964  # two-sided 95% point of the normal distribution
# Shown by `progress`: (metric, template), the most useful first; a narrow terminal loses the last.
LINE = (
  ("reward", "reward {:.3f}"),
  ("correct", "correct {:.0%}"),
  ("length", "len {:.1f}"),
  ("truncated", "trunc {:.0%}"),
  ("zero_variance", "same {:.0%}"),
  ("entropy", "H {:.2f}"),
  ("logp_gap", "gap {:.0e}"),
)
PHASES = ("sample", "verify", "score", "update")


class MetricsWriter:
  """Appends rows to workdir/metrics.jsonl and to TensorBoard, and keeps one live line.

  keep_below_step: on a resume, the first step that will run again; rows of that step and later
  ones are dropped, so that the file equals that of an uninterrupted run. None keeps every row.
  A last line that a kill cut in half is dropped in any case. `stream` takes the live line.
  """

  def __init__(
    self, workdir, total_steps: int, tensorboard=True, keep_below_step=None, stream=None
  ):
    self.workdir = Path(workdir)
    self.path = self.workdir / "metrics.jsonl"
    self.total_steps = int(total_steps)
    self.stream = stream or sys.stderr
    self.workdir.mkdir(parents=True, exist_ok=True)
    self._want_board, self._board, self._purge = tensorboard, None, None
    self._seconds: deque[float] = deque(maxlen=20)
    self._clock = time.monotonic()
    self._line_open = False
    self._started = False
    last = math.inf if keep_below_step is None else keep_below_step - 1
    if self.path.exists():
      self.truncate_after(last)

  def write(self, step: int, metrics: Mapping[str, Any], kind: str = "train") -> dict:
    """Appends one row and returns it. NaN and infinity become null and are counted in `nonfinite`.

    Values: anything `float` takes (Python, numpy and jax scalars). "kind" may also be a key of
    `metrics`. Raises UserError for a value that is not a scalar.
    """
    if not self._started:
      # A run that goes on is not finished, whatever an earlier, shorter one left here.
      (self.workdir / "final.json").unlink(missing_ok=True)
      self._started = True
    row: dict[str, Any] = {"step": int(step), "kind": metrics.get("kind", kind)}
    nonfinite = 0
    for name, value in metrics.items():
      if name in ("step", "kind"):
        continue
      row[name] = number = _number(name, value)
      nonfinite += number is None
    if nonfinite:
      row["nonfinite"] = nonfinite
    with open(self.path, "a", encoding="utf-8") as file:
      file.write(json.dumps(row, allow_nan=False) + "\n")
    self._to_board(row)
    return row

  def truncate_after(self, step: float) -> None:
    """Drops rows of steps after `step`, and a torn last line: a new file, then a rename."""
    if self._board is not None:
      self._board.close()
      self._board = None
    self._purge = None if math.isinf(step) else int(step) + 1
    if not self.path.exists():
      return
    keep = [line for line, row in _lines(self.path) if row["step"] <= step]
    atomic.write(self.path, "".join(line + "\n" for line in keep))

  def progress(self, step: int, metrics: Mapping[str, Any]) -> str:
    """Shows one line for the step and returns it: rewritten in place on a terminal, cut to its
    width; a full line of its own anywhere else."""
    parts = [f"step {step}/{self.total_steps}"]
    for name, template in LINE:
      value = _maybe(metrics.get(name))
      if value is not None:
        parts.append(template.format(value))
    phases = [(p, _maybe(metrics.get(f"time_{p}"))) for p in PHASES]
    shown = [f"{p} {seconds:.2g}" for p, seconds in phases if seconds is not None]
    if shown:
      parts.append(" ".join(shown) + " s")
    left = self._time_left(step, _maybe(metrics.get("time_total")))
    tty = getattr(self.stream, "isatty", lambda: False)()
    width = shutil.get_terminal_size((100, 24)).columns - 1 if tty else 10_000
    line = _fit(parts, f"left {duration(left)}", width)
    self.stream.write(f"\r{line}\x1b[K" if tty else line + "\n")
    self.stream.flush()
    self._line_open = tty
    return line

  def end_line(self) -> None:
    """Ends the live line, so that what is printed next starts on a line of its own."""
    if self._line_open:
      self.stream.write("\n")
      self.stream.flush()
      self._line_open = False

  def finish(self, final: Mapping[str, Any]) -> None:
    """Writes final.json, which the report reads, and prints the run's last line `final: {json}`.

    The report reads accuracy_before, accuracy_after, problems, wall_s, gain_low and gain_high.
    """
    self.close()
    clean = {k: _number(k, v) if _is_number(v) else v for k, v in final.items()}
    text = json.dumps(clean, allow_nan=False)
    atomic.write(self.workdir / "final.json", text + "\n")
    print("final: " + text, flush=True)

  def close(self) -> None:
    self.end_line()
    if self._board is not None:
      self._board.close()
      self._board = None

  def _time_left(self, step: int, total: float | None) -> float:
    now = time.monotonic()
    self._seconds.append(total if total is not None else now - self._clock)
    self._clock = now
    # The median: the first step compiles, and some steps evaluate or save.
    return statistics.median(self._seconds) * max(self.total_steps - step, 0)

  def _to_board(self, row: dict) -> None:
    if not self._want_board:
      return
    if self._board is None:
      try:
        from tensorboardX import SummaryWriter
      except ImportError:
        self._want_board = False
        return
      self._board = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=self._purge)
    for name, value in row.items():
      if name not in ("step", "kind") and value is not None:
        self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])
    self._board.flush()


def read_metrics(workdir) -> list[dict]:
  """The rows of workdir/metrics.jsonl in order; [] without the file; a torn last line is left out.

  Raises UserError naming the line for any other line that is not a row.
  """
  path = Path(workdir) / "metrics.jsonl"
  return [row for _, row in _lines(path)] if path.exists() else []


# ---- intervals -----------------------------------------------------------------------------------


def wilson(k: int, n: int, z: float = Z95) -> tuple[float, float]:
  """Wilson's score interval for a proportion k/n; (0, 1) for n = 0.

  (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), p = k/n (Wilson 1927).
  """
  if n <= 0:
    return 0.0, 1.0
  p = k / n
  centre = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


class Gain(NamedTuple):
  """after - before on the same problems, with its 95% interval."""

  gain: float
  low: float
  high: float
  won: int  # wrong before, right after
  lost: int
  problems: int


def paired_gain(before: Sequence[bool], after: Sequence[bool], z: float = Z95) -> Gain:
  """The change of accuracy on the same problems, with the interval of Bonett and Price (2012).

  With b problems won and c lost of n: p = (b + 1)/(n + 2), q = (c + 1)/(n + 2), and the interval is
  p - q +- z sqrt((p + q - (p - q)^2) / (n + 2)), cut to [-1, 1]. This is the normal interval on
  paired differences (McNemar's setting) with one pseudo-problem on either side, which keeps its
  coverage when few problems change. `gain` itself is (b - c)/n. No problems: (0, -1, 1).
  Raises UserError if the two lists differ in length.
  """
  if len(before) != len(after):
    raise UserError(f"paired_gain: {len(before)} problems before but {len(after)} after")
  won = sum(1 for x, y in zip(before, after, strict=True) if y and not x)
  lost = sum(1 for x, y in zip(before, after, strict=True) if x and not y)
  n = len(before)
  if n == 0:
    return Gain(0.0, -1.0, 1.0, 0, 0, 0)
  p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
  half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
  return Gain((won - lost) / n, max(-1.0, p - q - half), min(1.0, p - q + half), won, lost, n)


# ---- small parts ---------------------------------------------------------------------------------


def duration(seconds: float) -> str:
  """'42 s', '7 min 05 s', '3 h 20 min'."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60:02d} s"
  return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _is_number(value) -> bool:
  return not isinstance(value, (str, bool, type(None), dict, list, tuple)) and hasattr(
    value, "__float__"
  )


def _number(name: str, value) -> float | int | None:
  try:
    number = float(value)
  except (TypeError, ValueError):
    raise UserError(f"metric {name!r}: want a scalar, got {type(value).__name__}") from None
  if not math.isfinite(number):
    return None
  # Nine digits give every float32 back exactly and keep the file short.
  return value if type(value) is int else float(f"{number:.9g}")


def _maybe(value) -> float | None:
  if value is None or not math.isfinite(float(value)):
    return None
  return float(value)


def _lines(path: Path) -> list[tuple[str, dict]]:
  texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
  torn = texts.pop()  # "" after a complete last line
  if torn:
    texts = [*texts, torn]
  out = []
  for i, text in enumerate(texts):
    try:
      row = json.loads(text)
      int(row["step"])
    except (ValueError, TypeError, KeyError):
      if torn and i == len(texts) - 1:
        break
      raise UserError(f"{path}, line {i + 1}: not a row of metrics; remove that line") from None
    out.append((text, row))
  return out


def _fit(parts: list[str], last: str, width: int) -> str:
  while len(parts) > 1 and len("  ".join([*parts, last])) > width:
    parts = parts[:-1]
  return "  ".join([*parts, last])[:width]
