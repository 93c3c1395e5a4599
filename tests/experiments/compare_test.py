"""The comparison: its statistics, its cells, and what a person sees."""

import dataclasses
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import arena
from experiments import compare
from experiments.common.arena import cells, page, results, stats
from grpo_jax.errors import UserError

jax.devices()  # or the first comparison would decide how many there are for all tests of a process


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=4, max_size=4), st.integers(0, 3))
def test_the_interquartile_mean_is_the_mean_of_the_middle_half(values, seed):
  many = np.repeat(values, 4).astype(float)  # 16 numbers: 4 cut off at each end
  np.random.default_rng(seed).shuffle(many)
  want = np.mean(np.sort(many)[4:12])
  assert stats.iqm(many.reshape(8, 2)) == pytest.approx(want)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_the_probability_of_improvement_counts_pairs_and_halves_ties(seed):
  rng = np.random.default_rng(seed)
  x, y = rng.integers(0, 3, (4, 2)), rng.integers(0, 3, (3, 2))
  pairs = [
    (a[w] > b[w]) + 0.5 * (a[w] == b[w]) for a, b in itertools.product(x, y) for w in range(2)
  ]
  assert stats.probability_of_improvement(x, y) == pytest.approx(np.mean(pairs))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
  rng = np.random.default_rng(0)
  hits = 0
  for i in range(200):
    sample = rng.normal(size=(20, 2))
    e = stats.bootstrap(lambda s: float(np.mean(s)), sample, repeats=300, seed=i)
    hits += e.low <= 0 <= e.high
  assert 0.88 <= hits / 200 <= 0.985


def small(seeds=2):
  c = arena.get_config("debug")
  c.seeds, c.tune_seeds, c.lrs = seeds, 1, (1e-3, 1e-2)
  c.plan.update(updates=2, eval_every=1, warm_steps=0, prompts=2, group=2, heldout=8, problems=8)
  c.worlds = {"a": {"world": "modular_addition", "params": {"modulus": 3, "answer": 2}}}
  c.arms = {"grpo": {"method": "grpo"}}
  return c


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
  folder = tmp_path_factory.mktemp("arena")
  lines = []
  return folder, compare.compare(small(), folder, lines.append), lines


def test_a_comparison_writes_cells_results_and_a_page(ran):
  folder, final, lines = ran
  record = json.loads((folder / "cells" / "a__grpo.json").read_text())
  tuned = {(r["seed"], r["lr"]) for r in record["runs"]}
  assert {(cells.TUNE, 1e-3), (cells.TUNE, 1e-2)} <= tuned and len(tuned) == 4
  summary = json.loads((folder / "results.json").read_text())
  own = summary["worlds"]["a"]["arms"]["grpo"]
  reported = [r for r in record["runs"] if r["seed"] < cells.TUNE]
  assert {r["lr"] for r in reported} == {own["lr"]}
  assert own["each"] == [r["accuracy"][-1] for r in sorted(reported, key=lambda r: r["seed"])]
  text = (folder / "report.html").read_text()
  assert "<script" not in text and "modular_addition" in text
  assert final["arms"] == 1 and any("runs left" in line for line in lines)


def test_a_start_is_made_once_for_all_that_ask_for_it(monkeypatch):
  calls = []
  made = lambda world, plan: lambda seed: ({"w": jnp.full(2, seed)}, seed + plan.warm_steps)
  monkeypatch.setattr(cells.fused, "make_start", made)
  starts = cells.Starts(2, calls.append)
  world: Any = None  # not read by the start above
  plan = cells.fused.Sizes(warm_steps=10)
  params, steps = starts("a", world, plan, [5, 3, 5])
  np.testing.assert_array_equal(params["w"], [[5, 5], [3, 3], [5, 5]])
  np.testing.assert_array_equal(steps, [15, 13, 15])
  other = dataclasses.replace(plan, updates=7, eval_every=7, prompts=2)  # of no matter to a start
  starts("a", world, other, [3])
  assert len(calls) == 1
  starts("a", world, dataclasses.replace(plan, warm_steps=20), [3])
  starts("b", world, plan, [3])
  assert len(calls) == 3


@pytest.mark.slow
def test_a_shared_warm_start_is_the_one_that_a_run_makes_for_itself(tmp_path):
  c = small()
  c.plan.warm_steps, c.lrs = 10, (1e-2,)
  c.arms = {"grpo": {"method": "grpo"}, "rloo": {"method": "rloo"}}
  said = []
  compare.compare(c, tmp_path, said.append)
  assert sum("warm start" in line for line in said) == 1  # of two arms
  cell = cells.cells(c)[1]
  run, _, _ = cells.build(cell)
  curves = jax.jit(lambda seed: run(seed, 1e-2)[1])(jnp.int32(1))
  found = cells.Record(tmp_path / "cells", cell).get(1, 1e-2)
  assert found is not None and found["warm_steps"] == 10
  np.testing.assert_allclose(found["accuracy"], curves.accuracy, atol=1e-5)
  np.testing.assert_allclose(found["train"]["grad_norm"], curves.train["grad_norm"], atol=1e-4)


def test_the_same_command_runs_nothing_again(ran, monkeypatch):
  monkeypatch.setattr(cells, "over_seeds", lambda run: pytest.fail("ran again"))
  assert compare.compare(small(), ran[0], lambda _: None)["iqm"] == ran[1]["iqm"]


def test_more_seeds_add_to_what_is_there(ran):
  cell = cells.cells(small(seeds=5))[0]
  record = cells.Record(ran[0] / "cells", cell)
  lr = cells.best_lr(record, cell)
  assert cells.todo(record, cell) == [(s, lr) for s in (2, 3, 4)]


def test_other_settings_do_not_mix_with_what_is_there(ran):
  c = small()
  c.plan.group = 4
  before = (ran[0] / "cells" / "a__grpo.json").read_text()
  with pytest.raises(UserError, match="made with other settings"):
    compare.compare(c, ran[0], lambda _: None)
  assert (ran[0] / "cells" / "a__grpo.json").read_text() == before


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.worlds.update(a={"world": "modular_adition"}), "did you mean 'modular_addition'"),
    (
      lambda c: c.arms.update(grpo={"method": "grpo", "args": {"epslow": 1}}),
      "unknown name 'epslow'",
    ),
    (lambda c: c.arms.update(b={"method": "dpo"}), "a with b: .*plan Fixed"),
    (lambda c: c.plan.update(updates=3, eval_every=2), "updates=3: must be a multiple"),
    (lambda c: c.update(baseline="ppo"), "config.baseline='ppo'"),
  ],
)
def test_what_cannot_run_is_said_before_anything_runs(change, message, tmp_path, monkeypatch):
  monkeypatch.setattr(cells, "run_cell", lambda *a: pytest.fail("ran"))
  c = small()
  change(c)
  with pytest.raises(UserError, match=message):
    compare.compare(c, tmp_path, lambda _: None)


def test_every_cell_of_the_arena_can_be_built():
  c = arena.get_config()
  all_cells = cells.cells(c)
  assert len(all_cells) > 50
  for cell in all_cells:
    cells.build(cell)


def test_the_page_shows_a_world_that_some_arms_skip(ran):
  summary = json.loads((ran[0] / "results.json").read_text())
  summary["arms"]["other"] = summary["arms"]["grpo"]
  text = page.render(summary)
  assert text.count("<figure>") == 1 and "other" in text
  assert "–" in results.table(summary)
