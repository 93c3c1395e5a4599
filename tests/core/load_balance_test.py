"""Importance, load and their losses: against a simulation, float64 numpy and what paper 04 says."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core import load_balance

noisy_load = jax.jit(load_balance.noisy_load, static_argnums=3)


@pytest.mark.parametrize("experts", [2, 3, 8])
def test_all_mass_on_one_expert_gives_the_number_of_experts(experts):
  x = np.zeros(experts, np.float32)
  x[1] = 37.0
  assert float(load_balance.cv_squared(jnp.asarray(x))) == pytest.approx(experts, rel=1e-5)


def test_constant_importance_and_load_cost_nothing():
  x = jnp.full(6, 12.5)
  assert float(load_balance.balance_loss(x, 3 * x)) == 0
  assert float(load_balance.cv_squared(jnp.zeros(6))) == 0
  assert float(load_balance.cv_squared(jnp.asarray([4.0]))) == 0  # one expert: no variance


def test_balance_loss_is_the_sum_of_both_squared_variations():
  a, b = np.asarray([1.0, 2.0, 5.0]), np.asarray([3.0, 3.0, 9.0])
  expected = sum(np.var(x, ddof=1) / np.mean(x) ** 2 for x in (a, b))
  found = load_balance.balance_loss(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
  assert float(found) == pytest.approx(expected, rel=1e-6)


def draw(tokens=4, experts=5):
  rng = np.random.default_rng(0)
  clean = rng.normal(size=(tokens, experts))
  sigma = rng.uniform(0.3, 1.5, size=(tokens, experts))
  return clean, clean + sigma * rng.normal(size=clean.shape), sigma


def f32(*arrays):
  return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_load_is_how_often_an_expert_is_chosen_when_its_own_noise_is_drawn_again(k):
  clean, noisy, sigma = draw()
  draws = 20_000
  noise = np.random.default_rng(1).normal(size=draws)
  load, variance = np.zeros(5), np.zeros(5)
  for n in range(4):
    for j in range(5):
      others = np.delete(noisy[n], j)
      chosen = np.mean(np.sum(others > (clean[n, j] + sigma[n, j] * noise)[:, None], axis=1) < k)
      load[j] += chosen
      variance[j] += chosen * (1 - chosen) / draws
  found = np.asarray(noisy_load(*f32(clean, noisy, sigma), k))
  assert np.all(np.abs(found - load) < 4 * np.sqrt(variance) + 1e-3)


def test_load_equals_float64_numpy():
  clean, noisy, sigma = draw(tokens=30)
  expected = np.zeros(5)
  for n in range(30):
    for j in range(5):
      threshold = np.sort(np.delete(noisy[n], j))[-2]  # the second largest of the others
      z = (clean[n, j] - threshold) / sigma[n, j]
      expected[j] += math.erfc(-z / math.sqrt(2)) / 2
  found = noisy_load(*f32(clean, noisy, sigma), 2)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_in_or_out_test_compares_noisy_logits_not_the_noise():
  """An expert far above the others whose noise happened to be negative is in, and its threshold is
  the next one's; taking the noise for the logit would measure it against itself."""
  clean = np.asarray([[5.0, 0.0, 0.0]])
  noisy, sigma = clean - [[0.5, 0.0, 0.1]], np.full((1, 3), 0.5)
  found = noisy_load(*f32(clean, noisy, sigma), 1)
  assert float(found[0]) == pytest.approx(1.0, abs=1e-6)  # not Phi(1) = 0.84


def test_a_step_down_the_load_loss_evens_the_load():
  clean, noisy, sigma = draw(tokens=50)
  clean[:, 0] += 1.5
  noisy[:, 0] += 1.5
  noise = f32(noisy - clean)[0]

  def loss(clean):
    return load_balance.cv_squared(load_balance.noisy_load(clean, clean + noise, *f32(sigma), 2))

  value_and_grad = jax.jit(jax.value_and_grad(loss))
  before, grad = value_and_grad(*f32(clean))
  assert np.mean(grad[:, 0]) > 0 and np.mean(grad[:, 1:]) < 0
  assert value_and_grad(f32(clean)[0] - 5 * grad)[0] < before


def test_counted_load_and_importance():
  gates = jnp.asarray([[0.75, 0.25, 0.0], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
  np.testing.assert_array_equal(load_balance.count_load(gates), [3, 1, 1])
  np.testing.assert_array_equal(load_balance.importance(gates), [2.25, 0.25, 0.5])
  assert not np.any(jax.grad(lambda g: jnp.sum(load_balance.count_load(g) ** 2))(gates))
