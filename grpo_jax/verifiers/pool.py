"""`RewardPool`: scores completions in processes of their own, under time and memory limits.

A scorer may hang, crash or fill the memory on what a model wrote (`9**9**9**9`). Such a rollout
gets reward 0 and is counted; the others, and the run, go on. The limits guard against accidents:
a scorer that calls eval() still runs model text with the rights of the user.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.names import between
from grpo_jax.verifiers import parts as parts_lib
from grpo_jax.verifiers.item import as_row
from grpo_jax.verifiers.server import HEADER, write_message

KINDS = ("timeout", "memory", "exception", "crash")
_LOAD_LIMIT_S = 300.0  # importing scorers, on a busy machine


@dataclasses.dataclass(frozen=True)
class Scores:
  """One entry a completion.

  A failed one has reward 0 and parts 0, is not correct, and is alive: its answer was judged.
  One to which no part applied is not alive, with reward 0 and parts nan.
  """

  reward: np.ndarray  # f32[n], sum of weight * part over the parts that apply
  parts: np.ndarray  # f32[n, C] before weighting; nan where a part returned None
  correct: np.ndarray  # bool[n]
  alive: np.ndarray  # bool[n]
  failure: tuple[str | None, ...]  # kind of failure, or None
  failed: dict[str, int]  # counts by kind; every kind is a key
  errors: tuple[str, ...]  # the first few distinct messages, for the log
  units: np.ndarray | None = None  # f32[n, K] of the part that judges units; 0 where none is


class _Dead(Exception):
  pass


def _end(process: subprocess.Popen) -> None:
  """Ends the server and its children, idempotent; also run at exit and when a pool is lost."""
  for pipe in (process.stdin, process.stdout):
    with contextlib.suppress(OSError):
      if pipe is not None:
        pipe.close()
  try:
    process.wait(timeout=0.5)  # idle: it sees the end of its input
  except subprocess.TimeoutExpired:
    process.terminate()  # at work: its handler kills the children first
    try:
      process.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


class RewardPool:
  """Reward parts (see `verifiers.parts`) run by `workers` processes.

    with RewardPool(["exact"]) as pool:
      pool.start()                      # returns at once; loads beside the model's compilation
      scores = pool.score(completions, problems)

  `timeout_s` is wall clock for one completion over all parts; `memory_mb` is address space above
  what the loaded scorers take. `tasks` (DataSet.tasks) are loaded ahead. Problems are any objects
  with id, prompt, question, answer and meta. UserError for unknown parts or a function that does
  not import: the former at once, the latter by `ready()` or the first `score`.
  """

  def __init__(
    self,
    parts: Sequence,
    workers: int = 1,
    timeout_s: float = 2.0,
    memory_mb: int = 512,
    tasks: Sequence[dict] = (),
  ):
    self.specs = parts_lib.parse(parts)
    for name, value in (("workers", workers), ("timeout_s", timeout_s), ("memory_mb", memory_mb)):
      between(f"reward.{name}", value, above=0)
    self._hello = {
      "parts": [dataclasses.asdict(s) for s in self.specs],
      "workers": int(workers),
      "timeout_s": float(timeout_s),
      "memory_mb": int(memory_mb),
      "tasks": list(tasks),
    }
    self._process: subprocess.Popen | None = None
    self._finalizer = None
    self._loaded = False
    self._batch: dict | None = None

  @property
  def names(self) -> list[str]:
    """Names of the C parts, made unique, in the order of `Scores.parts`."""
    names = [s.name for s in self.specs]
    return [n if names.count(n) == 1 else f"{n}_{i}" for i, n in enumerate(names)]

  def start(self) -> "RewardPool":
    """Starts the processes without waiting for them; no-op if started."""
    if self._process is not None:
      return self
    # Not multiprocessing: its children import the main module again, and jax with it.
    path = [p or os.getcwd() for p in sys.path]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    self._process = subprocess.Popen(
      [sys.executable, "-m", "grpo_jax.verifiers.server"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      bufsize=0,
      env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(path)},
      start_new_session=True,  # Ctrl-C is for the trainer, kill(0) in a scorer only for its group
    )
    self._finalizer = weakref.finalize(self, _end, self._process)
    self._loaded = False
    self._send(self._hello)
    return self

  def ready(self) -> "RewardPool":
    """Waits until the scorers are loaded; UserError if one cannot be."""
    self.start()
    if not self._loaded:
      try:
        reply = self._read(_LOAD_LIMIT_S)
      except _Dead as e:
        self.close()
        raise UserError(f"reward.parts: the reward process ended while loading ({e})") from e
      if "error" in reply:
        self.close()
        raise UserError(reply["error"])
      self._loaded = True
    return self

  def score(
    self,
    completions: Sequence[str],
    problems: Sequence,
    tokens: Sequence[int] | None = None,
  ) -> Scores:
    """Scores completions[i] of problems[i]; `tokens[i]` is its length in tokens, if a part asks."""
    self.submit(completions, problems, tokens)
    return self.collect()

  def submit(self, completions, problems, tokens=None) -> None:
    """Sends a batch without waiting for it; `collect` gives its scores."""
    if self._batch is not None:
      raise RuntimeError("RewardPool.submit: collect the batch before first")
    if len(completions) != len(problems) or (tokens is not None and len(tokens) != len(problems)):
      raise ValueError("RewardPool: completions, problems and tokens differ in length")
    index: dict[int, int] = {}
    items, rows = [], []
    for i, (completion, problem) in enumerate(zip(completions, problems, strict=True)):
      if id(problem) not in index:
        index[id(problem)] = len(items)
        items.append(as_row(problem))
      length = None if tokens is None else int(tokens[i])
      rows.append((completion, index[id(problem)], length))
    self.ready()
    self._batch = {"items": items, "rows": rows}
    self._send(self._batch)

  def collect(self) -> Scores:
    """The scores of the submitted batch."""
    if self._batch is None:
      raise RuntimeError("RewardPool.collect: nothing was submitted")
    rows, limit = len(self._batch["rows"]), self._hello["timeout_s"] + 1.0
    try:
      replies = self._read(_LOAD_LIMIT_S + rows * limit)
    except _Dead:
      replies = self._again(rows, limit)
    self._batch = None
    return self._scores(replies)

  def _again(self, rows: int, limit: float) -> list[dict]:
    """The server itself died, e.g. by the kernel's memory killer: once more, then give up."""
    self._stop()
    try:
      self.ready()
      self._send(self._batch)
      return self._read(_LOAD_LIMIT_S + rows * limit)
    except _Dead:
      self._stop()
      return [{"failed": "crash", "error": "the reward server ended twice"}] * rows

  def _send(self, message) -> None:
    assert self._process is not None and self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # seen again, and mended, when the reply is read
      write_message(self._process.stdin.fileno(), pickle.dumps(message))

  def _read(self, limit_s: float):
    assert self._process is not None and self._process.stdout is not None
    fd, deadline = self._process.stdout.fileno(), time.monotonic() + limit_s
    data, want = bytearray(), HEADER.size
    while len(data) < want:
      if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise _Dead(f"no reply within {limit_s:.0f} s")
      piece = os.read(fd, 1 << 20)
      if not piece:
        raise _Dead("see its messages above")
      data += piece
      if want == HEADER.size and len(data) >= HEADER.size:
        want += HEADER.unpack_from(data)[0]
    return json.loads(bytes(data[HEADER.size :]))

  def _scores(self, replies: list[dict]) -> Scores:
    n, c = len(replies), len(self.specs)
    values = np.full((n, c), np.nan, np.float32)
    judging = next((s.units for s in self.specs if s.units), 0)
    of_units = np.zeros((n, judging), np.float32)
    for i, reply in enumerate(replies):
      given = [0.0] * c if "failed" in reply else reply["parts"]
      for each in given:
        if isinstance(each, list):
          of_units[i, : len(each)] = each
      total = lambda v: sum(v) if isinstance(v, list) else v
      values[i] = [np.nan if v is None else total(v) for v in given]
    applies = ~np.isnan(values)
    weight = np.asarray([s.weight for s in self.specs], np.float64)
    reward = np.sum(np.where(applies, values, 0.0) * weight[None, :], axis=1)
    bar = np.asarray([s.threshold for s in self.specs]) - 1e-6
    verdict = np.asarray([bool(s.verdict) for s in self.specs])
    failure = tuple(r.get("failed") for r in replies)
    ok = np.asarray([f is None for f in failure], bool)
    passed = applies & (np.where(applies, values, -np.inf) >= bar[None, :]) & verdict[None, :]
    return Scores(
      reward=reward.astype(np.float32),
      parts=values,
      correct=np.any(passed, axis=1) & ok,
      alive=np.any(applies, axis=1),
      failure=failure,
      failed={kind: failure.count(kind) for kind in KINDS},
      errors=tuple(dict.fromkeys(r["error"] for r in replies if "failed" in r))[:3],
      units=of_units if judging else None,
    )

  def _stop(self) -> None:
    if self._finalizer is not None:
      self._finalizer()
    self._process, self._finalizer = None, None

  def close(self) -> None:
    """Ends the processes; idempotent. A later `start` or `score` starts them again."""
    self._batch = None
    self._stop()

  def __enter__(self) -> "RewardPool":
    return self

  def __exit__(self, *exc) -> None:
    self.close()
