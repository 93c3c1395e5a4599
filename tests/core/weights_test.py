"""Aggregations against float64 loops over ragged rollouts that lie in any rows and units."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core import weights
from grpo_jax.errors import UserError

R, T, U, N, G = 4, 6, 2, 2, 3
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


def random_batch(seed):
  """(batch, rollouts, term [R, T], tokens): tokens[k] lists (row, column, unit) of rollout k."""
  rng = np.random.default_rng(seed)
  mask = rng.uniform(size=(R, T)) < rng.choice([0.0, 0.5, 1.0], p=[0.1, 0.5, 0.4])
  unit = rng.integers(0, U, (R, T))
  owner = rng.integers(0, N * G, (R, U))
  unit_mask = np.zeros((R, U), bool)
  tokens = {k: [] for k in range(N * G)}
  for r, t in np.argwhere(mask):
    unit_mask[r, unit[r, t]] = True
    tokens[owner[r, unit[r, t]]].append((r, t, (r, unit[r, t])))
  batch = types.SimpleNamespace(
    mask=jnp.asarray(mask, jnp.float32),
    unit=jnp.asarray(unit, jnp.int32),
    unit_mask=jnp.asarray(unit_mask, jnp.float32),
    owner=jnp.asarray(owner, jnp.int32),
  )
  rollouts = types.SimpleNamespace(
    reward=jnp.zeros((N, G)),
    alive=jnp.asarray(rng.uniform(size=(N, G)) < 0.8),
    truncated=jnp.asarray(rng.uniform(size=(N, G)) < 0.4),
  )
  return batch, rollouts, rng.normal(size=(R, T)), tokens


def aggregate(name, term, tokens, kept):
  """The aggregation as it is written in the papers: means of means and sums over sums."""
  kept = {k: ts for k, ts in tokens.items() if kept[k] and ts}
  if not kept:
    return 0.0
  sums = {k: sum(term[r, t] for r, t, _ in ts) for k, ts in kept.items()}
  if name == "rollout_mean":
    return np.mean([sums[k] / len(ts) for k, ts in kept.items()])
  if name == "token_mean":
    return sum(sums.values()) / sum(map(len, kept.values()))
  if name == "constant":
    return sum(sums.values()) / (len(kept) * 50)
  if name == "rollout_sum":
    return np.mean(list(sums.values()))
  per_rollout = []
  for ts in kept.values():
    by_unit = [[term[r, t] for r, t, v in ts if v == u] for u in {u for *_, u in ts}]
    per_rollout.append(np.mean([np.mean(xs) for xs in by_unit]))
  return np.mean(per_rollout)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("name", weights.AGGREGATES)
@quick
@given(seed=seeds)
def test_trap_01_each_aggregation_is_its_formula_and_empty_rollouts_do_not_count(name, drop, seed):
  batch, rollouts, term, tokens = random_batch(seed)
  include = weights.drop_truncated(rollouts) if drop else None
  w = weights.aggregate(name, batch, rollouts, max_tokens=50, include=include)
  kept = np.asarray(rollouts.alive)
  if drop:
    kept = kept & ~np.asarray(rollouts.truncated)
  kept = kept.reshape(-1)
  found = np.sum(np.asarray(w, np.float64) * term)
  np.testing.assert_allclose(found, aggregate(name, term, tokens, kept), rtol=1e-5, atol=1e-6)
  for k, ts in tokens.items():
    for r, t, _ in ts:
      assert (w[r, t] > 0) == kept[k]


@quick
@given(seed=seeds)
def test_weights_of_means_sum_to_one_or_to_zero_when_nothing_is_left(seed):
  batch, rollouts, _, tokens = random_batch(seed)
  some = any(ts and np.asarray(rollouts.alive).reshape(-1)[k] for k, ts in tokens.items())
  for f in (weights.rollout_mean, weights.token_mean, weights.unit_mean):
    np.testing.assert_allclose(jnp.sum(f(batch, rollouts)), float(some), rtol=1e-5)


def plain(lengths, width):
  """Rows are rollouts of one group, with these trained tokens."""
  mask = np.arange(width) < np.asarray(lengths)[:, None]
  rows = len(lengths)
  batch = types.SimpleNamespace(
    mask=jnp.asarray(mask, jnp.float32),
    unit=jnp.zeros((rows, width), jnp.int32),
    unit_mask=jnp.asarray(mask.any(1, keepdims=True), jnp.float32),
    owner=jnp.arange(rows, dtype=jnp.int32)[:, None],
  )
  alive = jnp.ones((1, rows), bool)
  return batch, types.SimpleNamespace(
    reward=jnp.zeros((1, rows)), alive=alive, truncated=jnp.asarray([[True] + [False] * (rows - 1)])
  )


def test_trap_01_dr_grpo_divides_by_the_budget_not_by_the_width_of_the_batch():
  for width in (4, 9):
    batch, rollouts = plain([4, 2, 0, 1], width)
    w = weights.constant(batch, rollouts, 100)
    np.testing.assert_allclose(w, np.asarray(batch.mask) / (3 * 100), rtol=1e-6)


def test_trap_02_the_token_mean_is_not_the_mean_of_the_token_means_of_micro_batches():
  batch, rollouts = plain([1, 1, 4, 4], 4)
  term = np.asarray(batch.mask) * np.asarray([3.0, 3, 1, 1])[:, None]
  w = np.asarray(weights.token_mean(batch, rollouts))
  parts = [np.sum(w[i : i + 2] * term[i : i + 2]) for i in (0, 2)]
  np.testing.assert_allclose(sum(parts), 1.4, rtol=1e-6)
  of_means = np.mean([np.mean(x[x > 0]) for x in (term[:2], term[2:])])
  np.testing.assert_allclose(of_means, 2.0)  # what a mean of means would give


def test_trap_16_truncated_rollouts_leave_numerator_and_denominator():
  batch, rollouts = plain([4, 2, 2], 4)
  w = weights.token_mean(batch, rollouts, weights.drop_truncated(rollouts))
  np.testing.assert_allclose(w, np.asarray(batch.mask) * [[0], [1], [1]] / 4, rtol=1e-6)
  rollouts.truncated = jnp.ones((1, 3), bool)
  for name in weights.AGGREGATES:
    w = weights.aggregate(
      name, batch, rollouts, max_tokens=4, include=weights.drop_truncated(rollouts)
    )
    assert (w == 0).all()


def test_unknown_names_and_missing_budgets_name_the_fix():
  batch, rollouts = plain([1], 1)
  with pytest.raises(UserError, match="^aggregate: unknown name .seq-mean.; .*rollout_mean"):
    weights.aggregate("seq-mean", batch, rollouts)
  with pytest.raises(UserError, match="max_tokens=None: must be the token budget"):
    weights.aggregate("constant", batch, rollouts)
