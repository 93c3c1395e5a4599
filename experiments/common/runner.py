"""Runs what is missing of a study, two runs at once, a file a cell.

A job is a cell and a seed. What ran lies in WORKDIR/cells, written after every program call, under
a name that holds a digest of all that decides the numbers: a killed command goes on with what is
missing, and an arm whose spec has changed runs anew by itself. Code is not in the digest: after a
change of code use another --workdir. Runs of a seed in one world share a warm start (starts.py).
"""

import concurrent.futures
import contextlib
import json
import time
from pathlib import Path

import jax
import numpy as np

from experiments.common import fused_runs
from experiments.common.starts import Starts
from experiments.common.study import TUNE, Cell
from grpo_jax.errors import UserError
from grpo_jax.run import atomic

Job = tuple[Cell, int]


class Store:
  """What has been run, by cell and seed."""

  def __init__(self, workdir: Path):
    self.folder = workdir / "cells"
    self.folder.mkdir(parents=True, exist_ok=True)
    self.known: dict[str, dict] = {}

  def _cell(self, cell: Cell) -> dict:
    if cell.file not in self.known:
      path = self.folder / cell.file
      empty = {"setting": cell.setting, "arm": cell.arm, "spec": cell.spec, "runs": []}
      self.known[cell.file] = json.loads(path.read_text()) if path.is_file() else empty
    return self.known[cell.file]

  def get(self, cell: Cell, seed: int) -> dict | None:
    return next((r for r in self._cell(cell)["runs"] if r["seed"] == seed), None)

  def numbers(self, cell: Cell, seeds) -> list[dict]:
    """[{measure: [points]}] of these seeds; KeyError unless all were run."""
    return [self.need(cell, seed)["numbers"] for seed in seeds]

  def need(self, cell: Cell, seed: int) -> dict:
    """KeyError unless it was run."""
    if (found := self.get(cell, seed)) is None:
      raise KeyError(f"{cell.file}, seed {seed}")
    return found

  def add(self, cell: Cell, run: dict) -> None:
    self._cell(cell)["runs"].append(run)
    atomic.write_json(self.folder / cell.file, self._cell(cell))


def prepare(workdir: Path, count: int) -> None:
  """Asks for `count` devices of the CPU, where jax has not started yet, and keeps programs."""
  if not jax.config.values["jax_compilation_cache_dir"]:
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "programs"))
  with contextlib.suppress(RuntimeError):  # else runs follow each other on what there is
    jax.config.update("jax_num_cpu_devices", count)


class Runner:
  def __init__(self, c, module, workdir: Path, say):
    self.c, self.module, self.say = c, module, say
    self.store, self.starts = Store(workdir), Starts(workdir / "starts", say, c.debug)
    self.programs = fused_runs.Programs(module, c.debug)

  def __call__(self, jobs: list[Job]) -> None:
    """Runs those that are missing, a program at a time, those of one length side by side."""
    missing = [j for j in jobs if self.store.get(*j) is None]
    groups: dict[tuple[str, float], list[Job]] = {}
    for job in missing:
      groups.setdefault((job[0].program, self._length(job)), []).append(job)
    left = sum(self._length(j) for j in missing)
    begun, done = time.monotonic(), 0.0
    for group in groups.values():
      go = self._measured() if hasattr(self.module, "measure") else self._fused(group)
      for i in range(0, len(group), self.c.at_once):
        part = group[i : i + self.c.at_once]
        for job, run in zip(part, go(part), strict=True):
          self.store.add(job[0], run)
        done += sum(self._length(j) for j in part)
        rest = (time.monotonic() - begun) / done * (left - done)
        self._report(part, rest)

  def _length(self, job: Job) -> float:
    return float(job[0].spec["plan"].get(self.c.length, 1))

  def _report(self, part: list[Job], rest: float) -> None:
    cell, seed = part[0]
    run = self.store.get(cell, seed)
    assert run is not None
    x = np.atleast_1d(run["numbers"][self.c.score.measure])
    tuned = f"lr {cell.spec['lr']:g} " if seed >= TUNE else ""
    runs = ", ".join(str(s - TUNE if s >= TUNE else s) for _, s in part)
    self.say(
      f"{cell.setting:>12} {cell.arm:<14} {tuned}seeds {runs}: {run['seconds']:.1f} s a run, "
      f"{self.c.score.measure} {x[0]:.3f} -> {x[-1]:.3f}   {rest / 60:.1f} min left"
    )

  def _fused(self, group: list[Job]):
    """go(jobs) -> entries, all by the same programs."""
    cell = group[0][0]
    world, _, plan = fused_runs.parts(cell, self.module)
    probe = getattr(self.module, "probe", lambda cell: None)(cell)
    warm_world = getattr(self.module, "warm_world", lambda world: world)(world)

    def go(part: list[Job]) -> list[dict]:
      full = part + part[:1] * (self.c.at_once - len(part))
      start = self.starts(cell, warm_world, plan, [seed for _, seed in full])
      seeds = np.asarray([seed for _, seed in full], np.int32)
      rates = np.asarray([c.spec["lr"] for c, _ in full], np.float32)
      before = self.programs.ran
      state, curves = self.programs.run(cell, seeds, rates, start[0])
      seconds = (self.programs.ran - before) / len(full)
      state = () if probe is None else state
      *found, steps = jax.device_get((state, start[0], curves, start[1]))
      out = []
      for i, (_, seed) in enumerate(part):
        one = jax.tree.map(lambda x, i=i: x[i], found)
        numbers = fused_runs.numbers(one[2], world, plan)
        if probe is not None and seed < TUNE:
          numbers |= self._probed(cell, probe(one[0], one[1], seed))
        warm = int(steps[i])
        out.append({"seed": seed, "seconds": seconds, "warm_steps": warm, "numbers": numbers})
      return out

    return go

  def _probed(self, cell: Cell, found: dict) -> dict:
    if set(found) != set(self.module.PROBED[cell.arm]):
      raise UserError(f"PROBED[{cell.arm!r}]: probe gave {', '.join(found)}")
    return {f"more:{name}": [float(x)] for name, x in found.items()}

  def _measured(self):
    """go(jobs) -> entries, each by the study's own `measure`, in threads of their own."""
    some = jax.local_devices()

    def one(job: Job, device) -> dict:
      cell, seed = job
      s = cell.spec
      world = {"world": s["world"], "params": s["params"]}
      arm = {"name": cell.arm, "method": s["method"], "args": s["args"], "lr": s["lr"]}
      before = time.monotonic()
      with jax.default_device(device):
        found = self.module.measure(world, arm, s["plan"], seed)
      if set(found) != set(self.module.MEASURES):
        raise UserError(f"MEASURES: measure gave {', '.join(found)}")
      numbers = {k: np.atleast_1d(np.asarray(v, float)).tolist() for k, v in found.items()}
      return {"seed": seed, "seconds": time.monotonic() - before, "numbers": numbers}

    def go(part: list[Job]) -> list[dict]:
      if len(part) == 1:
        return [one(part[0], some[0])]
      with concurrent.futures.ThreadPoolExecutor(len(part)) as pool:
        tasks = [pool.submit(one, j, some[i % len(some)]) for i, j in enumerate(part)]
        return [task.result() for task in tasks]

    return go
