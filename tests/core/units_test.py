"""The two hops against Python loops, on random ragged layouts."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core import units
from grpo_jax.types import Credit

R, T, U, N, G = 3, 7, 4, 2, 3
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=30, deadline=None)


def layout(seed, u=U):
  """A batch with random units, owners and masks, empty rows and units among them."""
  rng = np.random.default_rng(seed)
  mask = rng.uniform(size=(R, T)) < rng.choice([0.0, 0.5, 1.0])
  unit = rng.integers(0, u, (R, T))
  unit_mask = np.zeros((R, u), bool)
  for r, t in np.argwhere(mask):
    unit_mask[r, unit[r, t]] = True
  owner = rng.integers(0, N * G, (R, u))
  x = rng.normal(size=(R, T))
  batch = types.SimpleNamespace(
    mask=jnp.asarray(mask, jnp.float32),
    unit=jnp.asarray(unit, jnp.int32),
    unit_mask=jnp.asarray(unit_mask, jnp.float32),
    owner=jnp.asarray(owner, jnp.int32),
  )
  return batch, mask, unit, unit_mask, owner, x, rng


def f32(x):
  return jnp.asarray(x, jnp.float32)


ROLLOUTS = types.SimpleNamespace(reward=jnp.zeros((N, G)))


@pytest.mark.parametrize("u", [1, U])
@quick
@given(seed=seeds)
def test_pool_and_spread_equal_loops(u, seed):
  batch, mask, unit, unit_mask, _, x, rng = layout(seed, u)
  total, number = np.zeros((R, u)), np.zeros((R, u))
  for r, t in np.argwhere(mask):
    total[r, unit[r, t]] += x[r, t]
    number[r, unit[r, t]] += 1
  np.testing.assert_allclose(units.pool_sum(f32(x), batch), total, rtol=1e-5, atol=1e-5)
  mean = np.where(number > 0, total / np.maximum(number, 1), 0)
  np.testing.assert_allclose(units.pool_mean(f32(x), batch), mean, rtol=1e-5, atol=1e-5)
  y = rng.normal(size=(R, u))
  spread = np.where(mask, np.take_along_axis(y, unit, 1), 0)
  np.testing.assert_array_equal(units.spread(f32(y), batch), f32(spread))


@pytest.mark.parametrize("u", [1, U])
@quick
@given(seed=seeds)
def test_owner_hops_equal_loops(u, seed):
  batch, mask, unit, unit_mask, owner, _, rng = layout(seed, u)
  x, y = rng.normal(size=(N, G)), rng.normal(size=(R, u))
  np.testing.assert_array_equal(
    units.of_owner(f32(x), batch), f32(np.where(unit_mask, x.reshape(-1)[owner], 0))
  )
  total, number = np.zeros(N * G), np.zeros(N * G)
  for r, k in np.argwhere(unit_mask):
    total[owner[r, k]] += y[r, k]
  for r, t in np.argwhere(mask):
    number[owner[r, unit[r, t]]] += 1
  by = units.by_rollout(f32(y), batch, ROLLOUTS)
  np.testing.assert_allclose(by, total.reshape(N, G), rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(units.token_count(batch, ROLLOUTS), number.reshape(N, G))
  token_owner = np.where(mask, np.take_along_axis(owner, unit, 1), -1)
  np.testing.assert_array_equal(units.token_owner(batch), token_owner)


@quick
@given(seed=seeds)
def test_is_last_marks_the_last_trained_token_before_the_owner_changes(seed):
  batch, mask, _, _, owner, _, rng = layout(seed)
  unit = np.sort(rng.integers(0, U, (R, T)), axis=1)  # rollouts lie one after the other
  owner = np.stack([rng.permutation(N * G)[:U] for _ in range(R)])
  batch.unit, batch.owner = jnp.asarray(unit, jnp.int32), jnp.asarray(owner, jnp.int32)
  expected = np.zeros((R, T), bool)
  for r in range(R):
    for u in range(U):
      at = [t for t in range(T) if mask[r, t] and unit[r, t] == u]
      if at:
        expected[r, at[-1]] = True
  np.testing.assert_array_equal(units.is_last(batch), expected)


@quick
@given(seed=seeds)
def test_scatter_and_comparing_give_the_same(seed):
  batch, _, _, _, _, x, rng = layout(seed)
  add = [f(f32(x), batch.unit, U) for f in (units._add_by_scatter, units._add_by_comparing)]
  np.testing.assert_allclose(*add, rtol=1e-6, atol=1e-6)
  y = f32(rng.normal(size=(R, U)))
  np.testing.assert_array_equal(
    *[f(y, batch.unit) for f in (units._take_by_gather, units._take_by_comparing)]
  )
  np.testing.assert_array_equal(  # ids stay ids
    *[f(batch.owner, batch.unit) for f in (units._take_by_gather, units._take_by_comparing)]
  )


def test_accelerators_get_no_gather_and_no_scatter_and_cpus_no_comparing():
  batch, *_ = layout(0)

  def both(x, y, w):
    return units.pool_sum(x, batch), units.spread(y, batch), units.of_owner(w, batch)

  args = (jnp.zeros((R, T)), jnp.zeros((R, U)), jnp.zeros((N, G)))
  text = {
    p: jax.jit(both).trace(*args).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")
  }
  assert "gather" in text["cpu"] and "scatter" in text["cpu"]
  assert "gather" not in text["cuda"] and "scatter" not in text["cuda"]
  assert f"{R}x{T}x{U}" in text["cuda"] and f"{R}x{T}x{U}" not in text["cpu"]


@quick
@given(seed=seeds)
def test_gradients_of_pool_and_spread_are_each_others_transpose(seed):
  batch, mask, unit, _, _, x, rng = layout(seed)
  y = f32(rng.normal(size=(R, U)))
  pulled = jax.vjp(lambda x: units.pool_sum(x, batch), f32(x))[1](y)[0]
  np.testing.assert_allclose(pulled, units.spread(y, batch), rtol=1e-6, atol=1e-6)
  pushed = jax.vjp(lambda y: units.spread(y, batch), y)[1](f32(x))[0]
  np.testing.assert_allclose(pushed, units.pool_sum(f32(x), batch), rtol=1e-5, atol=1e-5)


def test_nan_off_the_mask_reaches_neither_value_nor_gradient():
  batch, mask, *_ = next(x for x in map(layout, range(9)) if 0 < x[1].mean() < 1)
  x = jnp.where(batch.mask > 0, 1.0, jnp.nan)
  value, grad = jax.value_and_grad(lambda x: jnp.sum(jnp.exp(units.pool_mean(x, batch))))(x)
  assert np.isfinite(value) and np.isfinite(grad).all() and (np.asarray(grad)[~mask] == 0).all()


def test_token_advantages_replace_those_of_units_where_given():
  batch, mask, unit, *_ = layout(5)
  credit = Credit(adv=jnp.ones((R, U)), weight=batch.mask)
  np.testing.assert_array_equal(units.token_adv(credit, batch), mask)
  by_token = jnp.arange(R * T, dtype=jnp.float32).reshape(R, T)
  found = units.token_adv(credit.replace(adv_token=by_token), batch)
  np.testing.assert_array_equal(found, np.where(mask, by_token, 0))


def test_trap_17_context_tokens_inside_a_unit_do_not_enter_its_mean():
  batch = types.SimpleNamespace(
    mask=jnp.asarray([[1.0, 0.0, 1.0, 1.0]]),  # the second token is a tool's
    unit=jnp.zeros((1, 4), jnp.int32),
    unit_mask=jnp.ones((1, 1)),
  )
  assert units.pool_mean(jnp.asarray([[1.0, 100.0, 2.0, 3.0]]), batch).item() == 2.0


def test_trap_18_a_packed_row_pools_per_segment():
  batch = types.SimpleNamespace(
    mask=jnp.ones((1, 4)),
    unit=jnp.asarray([[0, 0, 0, 1]], jnp.int32),
    unit_mask=jnp.ones((1, 2)),
  )
  mean = units.pool_mean(jnp.asarray([[1.0, 2.0, 3.0, 10.0]]), batch)
  np.testing.assert_array_equal(mean, [[2.0, 10.0]])
