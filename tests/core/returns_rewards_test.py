"""Returns, GAE and rewards against float64 loops."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core import returns, rewards, values
from grpo_jax.errors import UserError

R, T = 3, 8
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)


def random_rows(seed):
  rng = np.random.default_rng(seed)
  mask = rng.uniform(size=(R, T)) < rng.choice([0.0, 0.6, 1.0])
  segment = np.sort(rng.integers(0, 3, (R, T)), axis=1)
  return rng.normal(size=(R, T)), rng.normal(size=(R, T)), mask, segment, rng


def f32(*xs):
  return [jnp.asarray(x, jnp.float32) for x in xs]


def chains(mask, segment):
  """Lists of the trained tokens that follow each other."""
  for r in range(R):
    for s in np.unique(segment[r]):
      yield r, [t for t in range(T) if mask[r, t] and segment[r, t] == s]


@quick
@given(seed=seeds)
def test_discounted_returns_equal_their_sums(seed):
  reward, _, mask, segment, rng = random_rows(seed)
  gamma = rng.uniform(size=(R, T))
  constant, slots = np.zeros((R, T)), np.zeros((R, T))
  for r, ts in chains(mask, segment):
    for k, t in enumerate(ts):
      constant[r, t] = sum(0.9 ** (m - k) * reward[r, ts[m]] for m in range(k, len(ts)))
      discount = 1.0
      for s in ts[k:]:
        slots[r, t] += discount * reward[r, s]
        discount *= gamma[r, s]
  x, m, g = f32(reward, mask, gamma)
  np.testing.assert_allclose(returns.discounted(x, m, 0.9, segment), constant, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(returns.discounted(x, m, g, segment), slots, rtol=1e-5, atol=1e-5)


@quick
@given(seed=seeds)
def test_gae_equals_the_weighted_sum_of_temporal_differences(seed):
  reward, value, mask, segment, _ = random_rows(seed)
  adv = np.zeros((R, T))
  for r, ts in chains(mask, segment):
    for k, t in enumerate(ts):
      for m in range(k, len(ts)):
        after = value[r, ts[m + 1]] if m + 1 < len(ts) else 0.0
        delta = reward[r, ts[m]] + 0.9 * after - value[r, ts[m]]
        adv[r, t] += (0.9 * 0.7) ** (m - k) * delta
  x, v, m = f32(np.where(mask, reward, np.nan), np.where(mask, value, np.nan), mask)
  found, target = returns.gae(x, v, m, gamma=0.9, lam=0.7, segment=segment)
  np.testing.assert_allclose(found, adv, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(target, np.where(mask, adv + value, 0), rtol=1e-4, atol=1e-5)


def test_gae_at_lambda_1_is_the_return_minus_the_value_and_at_0_one_difference():
  reward, value, _, _, _ = random_rows(0)
  x, v, m = f32(reward, value, np.ones((R, T)))
  full, target = returns.gae(x, v, m, gamma=1.0, lam=1.0)
  np.testing.assert_allclose(target, returns.discounted(x, m, 1.0), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(full, target - v, rtol=1e-5, atol=1e-5)
  one, _ = returns.gae(x, v, m, gamma=0.9, lam=0.0)
  after = np.concatenate([value[:, 1:], np.zeros((R, 1))], axis=1)
  np.testing.assert_allclose(one, reward + 0.9 * after - value, rtol=1e-5, atol=1e-5)


def test_advantages_and_targets_carry_no_gradient_to_the_values():
  reward, value, _, _, _ = random_rows(0)
  x, v, m = f32(reward, value, np.ones((R, T)))
  out = lambda v: sum(map(jnp.sum, returns.gae(x, v, m, gamma=1.0, lam=0.9)))
  assert (jax.grad(out)(v) == 0).all()


def test_trap_16_the_soft_overlong_punishment_is_in_tokens_and_piecewise_linear():
  length = jnp.asarray([[0, 60, 80, 85, 90, 100, 101, 5000]], jnp.int32)
  found = rewards.soft_overlong(length, max_tokens=100, cache=20)
  np.testing.assert_allclose(found, [[0, 0, 0, -0.25, -0.5, -1, -1, -1]])
  with pytest.raises(UserError, match=r"overlong_cache=0: must be tokens .*, above 0"):
    rewards.soft_overlong(length, max_tokens=100, cache=0)


def test_the_kl_part_names_the_arrays_that_it_needs():
  batch = types.SimpleNamespace(logp_old=None, logp_ref=None)
  with pytest.raises(UserError, match="batch.logp_old and batch.logp_ref"):
    rewards.kl_of_rollout(batch, None)


@quick
@given(seed=seeds)
def test_clipped_value_loss_equals_its_formula_and_only_the_value_has_a_gradient(seed):
  value, old, _, _, rng = random_rows(seed)
  target = rng.normal(size=(R, T))
  near = old + np.clip(value - old, -0.2, 0.2)
  expected = np.maximum((value - target) ** 2, (near - target) ** 2)
  args = f32(value, old, target)
  np.testing.assert_allclose(values.clipped_value_loss(*args, 0.2), expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    values.clipped_value_loss(*args, None), (value - target) ** 2, rtol=1e-4, atol=1e-5
  )
  grads = jax.grad(lambda *a: jnp.sum(values.clipped_value_loss(*a, 0.2)), argnums=(0, 1, 2))(*args)
  stuck = (np.abs(value - old) > 0.2) & ((near - target) ** 2 > (value - target) ** 2)
  np.testing.assert_allclose(
    grads[0], np.where(stuck, 0, 2 * (value - target)), rtol=1e-3, atol=1e-4
  )
  assert (grads[1] == 0).all() and (grads[2] == 0).all()
