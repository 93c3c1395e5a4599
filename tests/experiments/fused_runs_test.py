"""A study's runs, in pieces: numbers of whole runs, by programs that lengths and rates share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import fused_runs
from experiments.common.study import Cell
from grpo_jax.train.programs import fused
from grpo_jax.train.programs.seeds import over_seeds

PLAN = {"updates": 4, "eval_every": 2, "prompts": 4, "group": 4, "problems": 8, "split": "id",
        "heldout": 8}  # fmt: skip


def cell(arm="x", lr=1e-2, method="grpo", args=None, **plan):
  world = {"world": "hidden_number", "params": {"numbers": 3, "guesses": 2}}
  return Cell(
    "s", arm, world | {"method": method, "args": args or {}, "plan": PLAN | plan, "lr": lr}
  )


def test_cells_share_programs_across_rates_and_lengths_but_not_arms():
  x = cell()
  assert x.program == cell(lr=1.0).program == cell(updates=8).program
  others = [cell(arm="y"), cell(eval_every=1), cell(args={"eps_low": 0.1}), cell(method="rloo")]
  assert len({x.program, *(c.program for c in others)}) == 5
  assert x.exam == cell(arm="y", method="rloo").exam != cell(heldout=9).exam
  assert len({x.file, cell(updates=8).file, cell(lr=1.0).file}) == 3


@pytest.mark.slow
def test_pieces_give_the_numbers_of_a_whole_run_and_compile_once():
  args = {"beta_kl": 0.1}
  x, half = (cell(method="ppo", args=args, updates=n) for n in (4, 2))  # ppo: a value head, too
  world, found, plan = fused_runs.parts(x)
  seeds, rates = np.asarray([0, 3], np.int32), np.asarray([1e-2, 3e-2], np.float32)
  starts = jax.device_get(over_seeds(fused.make_start(world, plan))(jnp.asarray(seeds)))
  whole = over_seeds(fused.make_run(world, found, plan))(seeds, rates, starts[0])
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), b)

  programs = fused_runs.Programs()
  state, curves = programs.run(x, seeds, rates, starts[0])
  same((state.params, curves), jax.device_get((whole[0].params, whole[1])))
  at_half, short = programs.run(half, seeds, rates, starts[0])
  assert curves.train["entropy"].shape == (2, 4) and short.held.reward.shape == (2, 2)
  same((short.train, short.held), jax.tree.map(lambda x: x[:, :2], (curves.train, curves.held)))
  moved, _ = programs.run(half, seeds, rates * 10, starts[0])
  apart = lambda a, b: not np.array_equal(a, b)
  assert any(jax.tree.leaves(jax.tree.map(apart, *jax.device_get((moved.params, at_half.params)))))
  assert {kind for kind, _ in programs.known} == {"begin", "stretch", "exam"}
  assert len(programs.known) == 3
