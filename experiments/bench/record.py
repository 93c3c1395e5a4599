"""What every timed process shares: its arguments, its clock and its one line of JSON.

Standard library only: the peers import this file in environments of their own.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path


def arguments(argv: Sequence[str] | None = None, *more: tuple[str, int]) -> argparse.Namespace:
  """The step and the model; the defaults are those of the published table. `more`: numbers that a
  process of another kind has, as (name, default)."""
  parser = argparse.ArgumentParser(allow_abbrev=False)
  for name, default in (
    ("prompt", 64),  # tokens
    ("new", 64),
    ("prompts", 2),
    ("group", 8),
    ("warmup", 2),
    ("steps", 6),
    ("hidden", 256),
    ("layers", 8),
    ("heads", 8),
    ("ffn", 1024),
    ("vocab", 4096),
    *more,
  ):
    parser.add_argument(f"--{name}", type=int, default=default)
  return parser.parse_args(argv)


def peak_mb() -> float:
  """Peak resident memory of this process in 10^6 bytes.

  From /proc where it exists: `ru_maxrss` of a child starts at what its parent held at the fork.
  """
  try:
    for line in Path("/proc/self/status").read_text().splitlines():
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) * 1024 / 1e6
  except OSError:
    pass
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def busy_seconds() -> float:
  """Processor seconds that all processes of the machine have used, 0 where nothing says so."""
  try:
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
  except (OSError, ValueError):
    return 0.0
  return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # less idle and iowait


class Clock:
  """Wall and CPU time of steps, and of named phases inside them."""

  def __init__(self):
    self.wall: list[float] = []
    self.cpu: list[float] = []  # of this process
    self.busy: list[float] = []  # of all processes
    self.phases: dict[str, list[float]] = {}
    self._last: tuple[float, float, float] | None = None

  def tick(self) -> None:
    """The end of a step, which is the start of the next; the first call only starts."""
    now = time.perf_counter(), time.process_time(), busy_seconds()
    if self._last is not None:
      self.wall.append(now[0] - self._last[0])
      self.cpu.append(now[1] - self._last[1])
      self.busy.append(now[2] - self._last[2])
    self._last = now

  def add(self, phase: str, seconds: float) -> None:
    self.phases.setdefault(phase, []).append(seconds)

  def timed(self, phase: str, function, after=lambda: None):
    """`function`, with its calls timed under `phase`; `after` waits for what it started."""

    def call(*args, **kwargs):
      start = time.perf_counter()
      out = function(*args, **kwargs)
      after()
      self.add(phase, time.perf_counter() - start)
      return out

    return call


class Repeats:
  """Times calls that do many things at once, and what other processes took meanwhile."""

  def __init__(self):
    self.wall: list[float] = []
    self.cpu: list[float] = []
    self.busy: list[float] = []

  def __call__(self, function, *args):
    start = time.perf_counter(), time.process_time(), busy_seconds()
    out = function(*args)
    self.wall.append(time.perf_counter() - start[0])
    self.cpu.append(time.process_time() - start[1])
    self.busy.append(busy_seconds() - start[2])
    return out

  def neighbours(self) -> float:
    """The part of the machine that other processes took."""
    others = max(sum(self.busy) - sum(self.cpu), 0.0)
    return round(others / (sum(self.wall) * (os.cpu_count() or 1)), 3)

  def summary(self, things: int, **fields) -> dict:
    """Of `things` a call: how many a second, by the median call, the best, and processor time."""
    return fields | {
      "things": things,
      "seconds": round(statistics.median(self.wall), 4),
      "seconds_all": [round(s, 4) for s in self.wall],
      "per_s": round(things / statistics.median(self.wall), 2),
      "per_s_best": round(things / min(self.wall), 2),
      "per_cpu_s": round(things / statistics.median(self.cpu), 2),
      "peak_mb": round(peak_mb(), 1),
      "neighbours": self.neighbours(),
      "load": round(os.getloadavg()[0], 2),
    }


def summary(clock: Clock, a: argparse.Namespace, **fields) -> dict:
  """Medians over the steps after the warm-up. ValueError if a phase has not one entry a step."""
  for name, entries in clock.phases.items():
    if len(entries) != len(clock.wall):
      raise ValueError(f"{name} was timed {len(entries)} times in {len(clock.wall)} steps")
  timed = clock.wall[a.warmup :]
  phases = {k: v[a.warmup :] for k, v in clock.phases.items()}
  step = statistics.median(timed)
  first = clock.wall[0]
  others = sum(clock.busy[a.warmup :]) - sum(clock.cpu[a.warmup :])
  spent = {f"{k}_s": round(statistics.median(v), 4) for k, v in phases.items()}
  rest = [t - sum(v[i] for v in phases.values()) for i, t in enumerate(timed)]
  return fields | {
    "prompt": a.prompt,
    "new": a.new,
    "rows": a.prompts * a.group,
    "step_s": round(step, 4),
    "step_min_s": round(min(timed), 4),
    "step_all_s": [round(t, 4) for t in timed],
    **spent,
    **{f"{k}_min_s": round(min(v), 4) for k, v in phases.items()},
    "other_s": round(statistics.median(rest), 4),
    "first_step_s": round(first, 3),
    "second_step_s": round(clock.wall[1], 3) if len(clock.wall) > 1 else None,
    "to_10_steps_s": round(first + 9 * step, 2),
    "to_100_steps_s": round(first + 99 * step, 2),
    "cpu_s": round(statistics.median(clock.cpu[a.warmup :]), 3),
    "peak_mb": round(peak_mb(), 1),
    # The part of the machine that other processes took from the timed steps.
    "neighbours": round(max(others, 0.0) / (sum(timed) * (os.cpu_count() or 1)), 3),
    "load": round(os.getloadavg()[0], 2),
    "cores": os.cpu_count(),
  }


def emit(result: dict) -> None:
  print(json.dumps(result), flush=True)


def last_json(text: str) -> dict:
  """The last line of `text` that is a JSON object. ValueError if there is none."""
  for line in reversed(text.splitlines()):
    if line.startswith("{"):
      try:
        return json.loads(line)
      except json.JSONDecodeError:
        continue
  raise ValueError("no line of JSON in the output")
