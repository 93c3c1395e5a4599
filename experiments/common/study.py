"""What the claims of papers have in common: their configs, their runs and what is read from them.

A paper's `experiments/SLUG/claim.py` has
  CLAIM        what the paper says, in the terms of the worlds
  NOTES        what is ours, what was left out
  CURVES       ((world, measure), ...) to be shown
  get_config   made by `config` below
  statements   data -> [experiments.common.statements.Statement], written before the runs
  probe        optional: (cell) -> None or (state, start params, seed) -> {name: number} after a run
  warm_world   optional: (world) -> the world whose solutions the warm start imitates

A measure is "accuracy", "reward" or "length" on held-out problems, "part:NAME" and "turn:K" there
(World.parts, turn rewards), "train:NAME" (a metric, as means between two evaluations), or
"more:NAME" (of `probe`, one number a run).
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs.common import check_variant
from experiments.common import statements
from experiments.common.arena import cells as arena
from experiments.common.arena.starts import Starts
from grpo_jax import envs

DEBUG = {"updates": 2, "eval_every": 1, "prompts": 4, "heldout": 16, "warm_steps": 10}


def config(slug: str, variant: str, *, plan, worlds, arms, lr: float, seeds: int = 10):
  """The config of a claim: one learning rate for all arms, whose losses Adam makes comparable."""
  debug = "debug" in check_variant(variant)
  c = ConfigDict({"slug": slug, "debug": debug, "seeds": 2 if debug else seeds, "tune_seeds": 0})
  c.lrs = (lr,)
  c.plan = ConfigDict(plan | DEBUG if debug else plan)
  if debug:  # the arms' own sizes give way, too
    small = lambda a: a | {"plan": {k: v for k, v in a.get("plan", {}).items() if k not in DEBUG}}
    worlds = {k: small(w) for k, w in worlds.items()}
    arms = {k: small(a) for k, a in arms.items()}
  c.worlds, c.arms = ConfigDict(worlds), ConfigDict(arms)
  return c


def run(cells, records, module, say) -> None:
  """Runs what is missing, one program at a time. The runs of a seed in one world share the warm
  start, which is computed once."""
  starts = Starts()
  probe = getattr(module, "probe", lambda cell: None)
  warm_world = getattr(module, "warm_world", lambda world: world)
  for cell, record in zip(cells, records, strict=True):
    (lr,) = cell.spec["lrs"]
    missing = [s for s in range(cell.spec["seeds"]) if record.get(s, lr) is None]
    if not missing:
      continue
    go, world, plan = arena.build(cell)
    program, measure = None, probe(cell)
    for seed in missing:
      start = starts(cell.world, warm_world(world), plan, [seed])
      params, warm = jax.tree.map(lambda x: x[0], start)
      args = jnp.int32(seed), jnp.float32(lr), params
      if program is None:
        before = time.monotonic()
        program = jax.jit(go).lower(*args).compile()
        record.data["compile_s"] = round(time.monotonic() - before, 2)
      before = time.monotonic()
      state, curves = jax.block_until_ready(program(*args))
      seconds = time.monotonic() - before
      more = {} if measure is None else measure(state, params, seed)
      record.add([_entry(curves, plan, seed, lr, warm, more, seconds)])
      say(f"{cell.world:>14} {cell.arm:<20} seed {seed}: {seconds:5.1f} s   "
          f"{_short(record.data['runs'][-1])}")  # fmt: skip


def _entry(curves, plan, seed: int, lr: float, warm, more: dict, seconds: float) -> dict:
  short = lambda x: np.round(np.asarray(x, float), 5).tolist()
  by_stretch = lambda x: np.asarray(x).reshape(-1, plan.eval_every).mean(axis=1)
  return {
    "seed": seed,
    "lr": lr,
    **{name: short(x) for name, x in curves.held._asdict().items()},
    "train": {name: short(by_stretch(x)) for name, x in curves.train.items()},
    "more": {name: float(x) for name, x in more.items()},
    "warm_steps": int(warm),
    "program_s": round(seconds, 2),
  }


def _short(entry: dict) -> str:
  first, last = entry["accuracy"][0], entry["accuracy"][-1]
  return f"accuracy {first:.2f} -> {last:.2f}, warm {entry['warm_steps']}"


class Data:
  """What was measured: data(world, arm, measure) -> f64[seeds, points]."""

  def __init__(self, cells, records):
    self.cells = {(c.world, c.arm): c for c in cells}
    self.runs = {}
    for cell, record in zip(cells, records, strict=True):
      (lr,) = cell.spec["lrs"]
      self.runs[cell.world, cell.arm] = [record.get(s, lr) for s in range(cell.spec["seeds"])]

  def __call__(self, world: str, arm: str, measure: str) -> np.ndarray:
    runs = self.runs[world, arm]
    kind, _, name = measure.partition(":")
    if kind == "part":
      spec = self.cells[world, arm].spec
      at = envs.get(spec["world"], **spec["params"]).parts.index(name)
      return np.asarray([[p[at] for p in r["parts"]] for r in runs])
    if kind == "turn":
      return np.asarray([[p[int(name)] for p in r["turns"]] for r in runs])
    if kind == "train":
      return np.asarray([r["train"][name] for r in runs])
    if kind == "more":
      return np.asarray([[r["more"][name]] for r in runs])
    return np.asarray([r[kind] for r in runs])

  def final(self, world: str, arm: str, measure: str = "accuracy") -> np.ndarray:
    """After the last update, one a seed."""
    return self(world, arm, measure)[:, -1]

  def area(self, world: str, arm: str, measure: str = "accuracy") -> np.ndarray:
    """Mean over the evaluations after the start, one a seed: how early it is reached."""
    return self(world, arm, measure)[:, 1:].mean(axis=1)

  def curves(self, shown) -> dict:
    """{"world, measure": {arm: {"steps", "value", "low", "high"}}}."""
    out = {}
    for world, measure in shown:
      panel = out.setdefault(f"{world}, {measure}", {})
      for w, arm in self.runs:
        if w == world and self._has(w, arm, measure):
          panel[arm] = self._curve(world, arm, measure)
    return out

  def _has(self, world: str, arm: str, measure: str) -> bool:
    kind, _, name = measure.partition(":")
    return kind not in ("train", "more") or name in self.runs[world, arm][0][kind]

  def _curve(self, world: str, arm: str, measure: str) -> dict:
    x = self(world, arm, measure)
    every = self.cells[world, arm].spec["plan"]["eval_every"]
    first = measure.startswith("train")
    bands = [statements.interval(column, 1000) for column in x.T]
    return {
      "steps": [(i + first) * every for i in range(x.shape[1])],
      "value": np.round(x.mean(axis=0), 4).tolist(),
      "low": [round(b[0], 4) for b in bands],
      "high": [round(b[1], 4) for b in bands],
    }

  def numbers(self, shown) -> dict:
    """At the end: {"world, measure": {arm: [mean, low, high]}}."""
    return {
      panel: {arm: [c["value"][-1], c["low"][-1], c["high"][-1]] for arm, c in arms.items()}
      for panel, arms in self.curves(shown).items()
    }

  def sampled(self) -> dict:
    """Tokens that the policy sampled in training, mean over seeds: {world: {arm: tokens}}."""
    out = {}
    for (world, arm), cell in self.cells.items():
      updates = cell.spec["plan"]["updates"]
      out.setdefault(world, {})[arm] = round(
        float(self(world, arm, "train:sampled").mean()) * updates
      )
    return out


def plot(curves: dict, path: Path) -> None:
  """A panel a measure, an arm a line with the interval of its mean."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  rows = -(-len(curves) // 3)
  figure, axes = plt.subplots(
    rows, min(3, len(curves)), figsize=(4.2 * min(3, len(curves)), 3 * rows), squeeze=False
  )
  for axis in axes.flat[len(curves) :]:
    axis.axis("off")
  for (name, arms), axis in zip(curves.items(), axes.flat, strict=False):
    for i, (arm, c) in enumerate(arms.items()):
      style = {"color": f"C{i % 10}", "marker": "." if len(c["steps"]) == 1 else ""}
      axis.plot(c["steps"], c["value"], label=arm, **style)
      axis.fill_between(c["steps"], c["low"], c["high"], color=style["color"], alpha=0.12, lw=0)
    axis.set_title(name, fontsize=9)
    axis.set_xlabel("updates", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6)
  figure.tight_layout()
  figure.savefig(path, dpi=80)
  plt.close(figure)
