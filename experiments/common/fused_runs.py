"""The runs of a study on the fused loop: their programs, and the numbers of one run.

The loop over stretches of updates is on the host, so runs of any length share their programs:
tuning at half length, the runs that are reported and the longer attempt; all arms of a world share
the exam. Seeds and learning rates are arguments.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.arena import cells as arena
from experiments.common.study import Cell
from grpo_jax.train.programs import fused
from grpo_jax.train.programs.seeds import over_seeds

QUICK: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
# (compiles twice as fast, runs four times as long)


def parts(cell: Cell, module=None):
  """(world, method, plan); UserError names the arm and the wrong field."""
  alter = getattr(module, "alter", lambda cell, method: method)
  return arena.parts(arena.Cell(cell.setting, cell.arm, cell.spec), lambda m: alter(cell, m))


class Programs:
  """Runs side by side, by programs that are compiled when they are first needed; quick: for a few
  updates."""

  def __init__(self, module=None, quick: bool = False):
    self.module, self.options = module, QUICK if quick else None
    self.known: dict[tuple[str, str], Any] = {}
    self.ran = 0.0  # seconds, without compiling

  def run(self, cell: Cell, seeds, rates, params):
    """(states, Curves of numpy arrays) of i32[S], f32[S] and starts [S, ...], as `make_run` gives
    them. Nothing is indexed on the devices: a slice of a sharded array is a program of its own,
    in which they wait for each other."""
    pieces = fused.make_pieces(*(found := parts(cell, self.module)))
    plan, none = found[2], np.zeros(len(seeds), np.int32)
    warm: Any = none
    begin = lambda seed, params: pieces.begin(seed, params)[:2]
    one = lambda seed, lr, index, state, reference: pieces.stretch(
      state, reference, seed, lr, index
    )
    exam = lambda _, params: pieces.evaluate(params)

    def held(state):
      policy = {k: v for k, v in state.params.items() if k != "value"}
      return self._call("exam", cell.exam, exam, seeds, policy)

    state, reference = self._call("begin", cell.program, begin, seeds, params)
    after, trained = [held(state)], []
    for index in range(plan.updates // plan.eval_every):
      args = seeds, rates, none + index, state, reference
      state, metrics = self._call("stretch", cell.program, one, *args)
      trained.append(jax.device_get(metrics))
      after.append(held(state))
    train = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *trained)
    all_held = jax.tree.map(lambda *x: np.stack(x, axis=1), *after)
    return state, fused.Curves(train, all_held.accuracy, all_held.reward, warm, all_held)

  def _call(self, kind: str, key: str, piece, *args):
    if (kind, key) not in self.known:
      lowered = over_seeds(piece).lower(*args)
      self.known[kind, key] = lowered.compile(compiler_options=self.options)
    before = time.monotonic()
    out = jax.block_until_ready(self.known[kind, key](*args))
    self.ran += time.monotonic() - before
    return jax.device_get(out) if kind == "exam" else out


def numbers(curves, world, plan) -> dict[str, list[float]]:
  """{measure: [points]} of a run, and totals."""
  short = lambda x: [float(f"{v:.6g}") for v in np.asarray(x, float).reshape(-1)]
  by_stretch = lambda x: np.asarray(x).reshape(-1, plan.eval_every).mean(axis=1)
  held = curves.held
  out = {name: short(getattr(held, name)) for name in ("accuracy", "reward", "length")}
  out |= {f"part:{name}": short(held.parts[:, i]) for i, name in enumerate(world.parts)}
  out |= {f"turn:{i}": short(held.turns[:, i]) for i in range(held.turns.shape[1])}
  out |= {f"train:{name}": short(by_stretch(x)) for name, x in curves.train.items()}
  out["updates"] = [float(plan.updates)]
  out["rollouts"] = [float(plan.updates * plan.prompts * plan.group)]
  if "sampled" in curves.train:
    out["sampled"] = short(np.asarray(curves.train["sampled"], float).sum())
  return out


def names(cell: Cell, module) -> dict[str, int]:
  """{measure: points} that a run of the cell will have; traced, nothing runs."""
  world, method, plan = parts(cell, module)
  run = fused.make_run(world, method, plan)
  seed, rate = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
  curves = jax.eval_shape(lambda *each: run(*each)[1], seed, rate)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape), curves)
  return {name: len(points) for name, points in numbers(zeros, world, plan).items()}


def parameters(cell: Cell) -> int:
  """Of the policy."""
  world, _, plan = parts(cell)
  shapes = jax.eval_shape(fused.make_start(world, plan), jax.ShapeDtypeStruct((), jnp.int32))[0]
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
