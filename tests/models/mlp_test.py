"""The actor-critic perceptrons: densities that integrate, samples that follow them, PPO's start."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.models import mlp
from grpo_jax.models.mlp import MLPConfig
from grpo_jax.types import Batch

DISCRETE = MLPConfig(observation=3, actions=4, hidden=(8, 6))
GAUSSIAN = MLPConfig(observation=3, actions=2, continuous=True, hidden=(8, 6), activation="relu")


def params_of(config, scale=400.0):
  """Far from the start, where all actions are nearly equal."""
  params = mlp.init(config, jax.random.key(0))
  params["actor"][-1] = jax.tree.map(lambda x: scale * x, params["actor"][-1])
  if config.continuous:
    params["log_std"] = jnp.array([-0.7, 0.3])
  return params


def slow(config, layers, x):
  """float64, one layer after the other."""
  act = np.tanh if config.activation == "tanh" else lambda x: np.maximum(x, 0)
  for i, layer in enumerate(layers):
    x = x @ np.asarray(layer["w"], np.float64) + np.asarray(layer["b"], np.float64)
    x = act(x) if i + 1 < len(layers) else x
  return x


@pytest.mark.parametrize("config", [DISCRETE, GAUSSIAN], ids=["discrete", "gaussian"])
def test_layers_are_those_of_numpy_in_any_batch_shape(config):
  params = params_of(config)
  params = jax.tree.map(lambda x: x + 0.1, params)  # biases too
  x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
  np.testing.assert_allclose(
    mlp.policy(config, params, jnp.asarray(x)), slow(config, params["actor"], x), atol=1e-4
  )
  expected = slow(config, params["critic"], x)[..., 0]
  np.testing.assert_allclose(mlp.value(config, params, jnp.asarray(x)), expected, atol=1e-4)


def test_weights_start_orthogonal_with_ppo_s_gains():
  params = mlp.init(MLPConfig(observation=5, actions=3), jax.random.key(1))
  for tower, last in (("actor", 0.01), ("critic", 1.0)):
    for layer, gain in zip(params[tower], (math.sqrt(2), math.sqrt(2), last), strict=True):
      w = np.asarray(layer["w"], np.float64)
      gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
      np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5 * gain**2)
      assert not np.any(layer["b"])
  assert not np.allclose(params["actor"][0]["w"], params["critic"][0]["w"])


def test_discrete_log_probabilities_and_entropy_are_those_of_softmax():
  params, rng = params_of(DISCRETE), np.random.default_rng(1)
  x = rng.normal(size=(6, 3)).astype(np.float32)
  action = rng.integers(0, 4, 6).astype(np.int32)
  z = slow(DISCRETE, params["actor"], x)
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  log_p, entropy = mlp.log_prob_and_entropy(DISCRETE, params, jnp.asarray(x), jnp.asarray(action))
  np.testing.assert_allclose(log_p, np.log(p[np.arange(6), action]), atol=1e-4)
  np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(-1), atol=1e-4)
  assert np.ptp(np.asarray(entropy)) > 0.1


def test_gaussian_density_integrates_to_one_and_its_entropy_is_the_integral():
  params, x = params_of(GAUSSIAN), jnp.ones((1, 3))
  centre = np.asarray(mlp.policy(GAUSSIAN, params, x))[0]
  std = np.exp([-0.7, 0.3])
  axes = [centre[i] + std[i] * np.linspace(-7, 7, 201) for i in range(2)]
  grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
  at = jnp.broadcast_to(x, (len(grid), 3))
  log_p, entropy = mlp.log_prob_and_entropy(GAUSSIAN, params, at, jnp.asarray(grid))
  log_p = np.asarray(log_p, np.float64)
  cell = np.prod([a[1] - a[0] for a in axes])
  assert abs(np.exp(log_p).sum() * cell - 1) < 1e-4
  assert abs(-(np.exp(log_p) * log_p).sum() * cell - float(entropy[0])) < 1e-3


def test_samples_have_the_probabilities_that_are_scored():
  params, number = params_of(DISCRETE), 40_000
  x = jnp.broadcast_to(jnp.array([0.3, -1.0, 0.5]), (number, 3))
  action = mlp.choose_action(DISCRETE, params, x, mlp.noise(DISCRETE, jax.random.key(2), (number,)))
  assert action.dtype == jnp.int32
  every = jnp.arange(4, dtype=jnp.int32)
  p = np.exp(mlp.log_prob_and_entropy(DISCRETE, params, x[:4], every)[0])
  seen = np.bincount(np.asarray(action), minlength=4) / number
  assert np.all(np.abs(seen - p) < 5 * np.sqrt(p * (1 - p) / number) + 1e-9)
  greedy = mlp.choose_action(DISCRETE, params, x[:1], jnp.zeros((1, 4)))
  assert int(greedy[0]) == int(np.argmax(p))


def test_gaussian_samples_have_the_mean_and_deviation_that_are_scored():
  params, number = params_of(GAUSSIAN), 40_000
  x = jnp.ones((number, 3))
  action = np.asarray(
    mlp.choose_action(GAUSSIAN, params, x, mlp.noise(GAUSSIAN, jax.random.key(3), (number,)))
  )
  std = np.exp([-0.7, 0.3])
  centre = np.asarray(mlp.policy(GAUSSIAN, params, x[:1]))[0]
  assert np.all(np.abs(action.mean(0) - centre) < 5 * std / np.sqrt(number))
  assert np.all(np.abs(action.std(0) / std - 1) < 0.02)


@pytest.mark.parametrize("config", [DISCRETE, GAUSSIAN], ids=["discrete", "gaussian"])
def test_what_the_mask_excludes_reaches_neither_output_nor_gradient(config):
  params, rng = params_of(config), np.random.default_rng(4)
  mask = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
  x = rng.normal(size=(2, 3, 3)).astype(np.float32)
  extra = {"action": jnp.asarray(rng.normal(size=(2, 3, 2)), jnp.float32)}

  def out(params, x):
    batch = Batch(
      tokens=jnp.zeros((2, 3), jnp.int32),
      mask=jnp.asarray(mask),
      unit=jnp.zeros((2, 3), jnp.int32),
      unit_mask=jnp.ones((2, 1)),
      owner=jnp.arange(2, dtype=jnp.int32)[:, None],
      extra={"observation": x, **extra},
    )
    fwd = mlp.make_forward(config)(params, batch)
    return jnp.stack([fwd.logp, fwd.entropy, fwd.value])

  got = np.asarray(out(params, jnp.asarray(x)))
  assert np.all(got[:, mask == 0] == 0) and np.all(got[0][mask > 0] != 0)
  slope = np.asarray(jax.grad(lambda x: jnp.sum(out(params, x) ** 2))(jnp.asarray(x)))
  assert np.all(slope[mask == 0] == 0) and np.all(np.any(slope[mask > 0] != 0, axis=-1))


@pytest.mark.parametrize(
  ("bad", "message"),
  [({"activation": "gelu"}, "activation: unknown name 'gelu'"), ({"hidden": (0,)}, "at least 1")],
)
def test_bad_sizes_and_names_are_refused(bad, message):
  with pytest.raises(UserError, match=message):
    MLPConfig(observation=2, actions=2, **bad)
