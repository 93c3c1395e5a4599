"""The runs of a study on the fused loop: its program, and the numbers of one run."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.arena import cells as arena
from experiments.common.study import Cell
from grpo_jax.train.programs import fused
from grpo_jax.train.programs.seeds import over_seeds


def build(cell: Cell, module=None):
  """(run, world, plan); UserError names the arm and the wrong field."""
  alter = getattr(module, "alter", lambda cell, method: method)
  return arena.build(arena.Cell(cell.setting, cell.arm, cell.spec), lambda m: alter(cell, m))


QUICK: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
# (compiles twice as fast, runs four times as long)


def compiled(run, seeds, rates, params, keep: bool, quick: bool):
  """(seeds, rates, params) -> (states or (), curves), runs side by side; keep: the states; quick:
  for a few updates."""
  both = lambda *each: run(*each) if keep else ((), run(*each)[1])
  options = QUICK if quick else None
  return over_seeds(both).lower(seeds, rates, params).compile(compiler_options=options)


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
  run, world, plan = build(cell, module)
  seed, rate = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
  curves = jax.eval_shape(lambda *each: run(*each)[1], seed, rate)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape), curves)
  return {name: len(points) for name, points in numbers(zeros, world, plan).items()}


def parameters(cell: Cell) -> int:
  """Of the policy."""
  _, world, plan = build(cell)
  shapes = jax.eval_shape(fused.make_start(world, plan), jax.ShapeDtypeStruct((), jnp.int32))[0]
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
