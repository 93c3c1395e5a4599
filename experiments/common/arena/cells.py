"""A cell is one arm on one world: one compiled program, run for pairs of seed and learning rate.

Tuning uses seeds that are not reported; runs of one seed start from the same policy in every arm of
a world. What ran lies in a JSON file a cell, written after every program call, so the same command
goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.arena.starts import Starts
from grpo_jax import envs, methods
from grpo_jax.errors import UserError
from grpo_jax.names import check_keys
from grpo_jax.run import atomic
from grpo_jax.train.programs import fused
from grpo_jax.train.programs.seeds import over_seeds

TUNE = 1_000_000  # tuning seeds begin here
KEPT = ("reward", "correct", "length", "truncated", "zero_variance", "entropy", "grad_norm")


@dataclasses.dataclass(frozen=True)
class Cell:
  world: str
  arm: str
  spec: dict  # all that decides the numbers

  @property
  def file(self) -> str:
    return f"{self.world}__{self.arm}.json"

  @property
  def digest(self) -> str:
    fixed = {k: v for k, v in self.spec.items() if k != "seeds"}  # more seeds may be added
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def cells(c) -> list[Cell]:
  """World by world, every arm but those that a world's or arm's `skip` names."""
  out = []
  for world, w in c.worlds.to_dict().items():
    for arm, a in c.arms.to_dict().items():
      if arm in w.get("skip", ()) or world in a.get("skip", ()):
        continue
      plan = c.plan.to_dict() | w.get("plan", {}) | a.get("plan", {})
      spec = {
        "world": w["world"],
        "params": w.get("params", {}),
        "method": a["method"],
        "args": a.get("args", {}),
        "plan": plan,
        "measure": w.get("measure", "accuracy"),
        "lrs": [float(x) for x in c.lrs],
        "tune_seeds": c.tune_seeds,
        "seeds": c.seeds,
      }
      out.append(Cell(world, arm, spec))
  return out


def parts(cell: Cell, alter=lambda method: method):
  """(world, method, plan) of the cell; UserError names the cell and the wrong field. alter: what
  is changed of the method."""
  spec = cell.spec
  try:
    check_keys("plan", spec["plan"], fused.Sizes.__dataclass_fields__)
    plan = fused.Sizes(**spec["plan"])
    world = envs.get(spec["world"], **spec["params"])
    args = dict(spec["args"])
    if methods.defaults(spec["method"]).get("max_tokens", 0) in (None, ...):
      args = {"max_tokens": world.answer} | args
    method = alter(methods.get(spec["method"], **args))
    fused.check(world, method)
    return world, method, plan
  except ValueError as error:
    raise UserError(f"{cell.world} with {cell.arm}: {error}") from error


def build(cell: Cell):
  """(run, world, plan) of the cell."""
  world, method, plan = parts(cell)
  return fused.make_run(world, method, plan), world, plan


class Record:
  """What has been run of a cell."""

  def __init__(self, folder: Path, cell: Cell):
    self.path = folder / cell.file
    self.data = {"digest": cell.digest, "spec": cell.spec, "runs": [], "compile_s": 0.0}
    if self.path.is_file():
      found = json.loads(self.path.read_text())
      if found["digest"] != cell.digest:
        raise UserError(
          f"{self.path}: made with other settings; use another --workdir, or delete the file"
        )
      self.data = found

  def get(self, seed: int, lr: float) -> dict | None:
    return next((r for r in self.data["runs"] if r["seed"] == seed and r["lr"] == lr), None)

  def add(self, runs: list[dict]) -> None:
    self.data["runs"] += runs
    atomic.write_json(self.path, self.data)


def best_lr(record: Record, cell: Cell) -> float:
  """The learning rate with the greatest area under the held-out measure, over the tuning seeds."""
  lrs = cell.spec["lrs"]
  if len(lrs) == 1:
    return lrs[0]

  def area(lr):
    runs = [record.get(TUNE + s, lr) for s in range(cell.spec["tune_seeds"])]
    return np.mean([np.mean(r[cell.spec["measure"]]) for r in runs if r is not None])

  return max(lrs, key=area)


def todo(record: Record, cell: Cell) -> list[tuple[int, float]]:
  """Pairs (seed, lr) that are to be run next: the tuning, then the reported seeds."""
  spec = cell.spec
  tune = [(TUNE + s, lr) for lr in spec["lrs"] for s in range(spec["tune_seeds"])]
  tune = [] if len(spec["lrs"]) == 1 else [p for p in tune if record.get(*p) is None]
  if tune:
    return tune
  lr = best_lr(record, cell)
  return [(s, lr) for s in range(spec["seeds"]) if record.get(s, lr) is None]


def run_cell(record: Record, cell: Cell, starts: Starts, progress) -> None:
  """Runs what is missing, `starts.at_once` pairs a program call; `progress(n, seconds)` after
  each, whose seconds are those of the runs without their warm starts."""
  if not todo(record, cell):
    return
  run, world, plan = build(cell)
  program = None
  while pairs := todo(record, cell):
    pairs = pairs[: starts.at_once]
    full = pairs + pairs[:1] * (starts.at_once - len(pairs))
    seeds, lrs = map(list, zip(*full, strict=True))
    params, warm = starts(cell.world, world, plan, seeds)
    args = jnp.asarray(seeds, jnp.int32), jnp.asarray(lrs, jnp.float32), params
    if program is None:
      start = time.monotonic()
      program = over_seeds(lambda *each: run(*each)[1]).lower(*args).compile()
      record.data["compile_s"] = round(time.monotonic() - start, 2)
    start = time.monotonic()
    curves = jax.tree.map(np.asarray, program(*args)._replace(warm_steps=warm))
    seconds = time.monotonic() - start
    record.add([_entry(curves, i, *pair, seconds) for i, pair in enumerate(pairs)])
    progress(len(pairs), seconds)


def _entry(curves, i: int, seed: int, lr: float, seconds: float) -> dict:
  short = lambda x: [round(float(v), 5) for v in x]
  updates = len(curves.train["reward"][i])
  every = max(1, updates // 50)  # enough points for a plot
  return {
    "seed": seed,
    "lr": lr,
    "accuracy": short(curves.accuracy[i]),
    "reward": short(curves.reward[i]),
    "warm_steps": int(curves.warm_steps[i]),
    "train": {k: short(curves.train[k][i][::every]) for k in KEPT if k in curves.train},
    "train_every": every,
    "program_s": round(seconds, 3),
  }
