"""Linear bandits: features, tasks and the structure-blind sampler that made the contexts."""

import jax
import numpy as np
from scipy import stats

from grpo_jax.envs import contextual
from grpo_jax.envs.contextual import linear_bandit


def test_features_are_those_of_dpt():
  rng = np.random.RandomState(seed=1234)
  expected = rng.normal(size=(10, 2)) / np.sqrt(2)
  np.testing.assert_allclose(linear_bandit.features(), expected, rtol=1e-6)


def test_means_are_linear_in_the_features_and_weights_have_variance_1_over_d():
  family = contextual.get("linear_bandit", arms=6, dim=3)
  tasks = jax.jit(jax.vmap(family.task))(jax.random.split(jax.random.key(0), 4000))
  theta, phi = np.asarray(tasks.theta, np.float64), linear_bandit.features(6, 3).astype(np.float64)
  np.testing.assert_allclose(tasks.mean, theta @ phi.T, atol=1e-5)
  assert stats.kstest(theta.ravel() * 3**0.5, "norm").pvalue > 1e-3


def thompson_of_numpy(mean, draws, errors, noise):
  """The precision form of the posterior, one conjugate update a reward, in float64."""
  arms = len(mean)
  precision, weighted = np.ones(arms), np.zeros(arms)  # prior N(0, 1)
  actions, rewards = [], []
  for draw, error in zip(draws, errors, strict=True):
    action = int(np.argmax(weighted / precision + draw / np.sqrt(precision)))
    reward = mean[action] + noise * error
    precision[action] += 1 / noise**2
    weighted[action] += reward / noise**2
    actions.append(action)
    rewards.append(reward)
  return np.asarray(actions), np.asarray(rewards)


def test_contexts_are_those_of_a_thompson_sampler_that_does_not_know_the_features():
  family = contextual.get("linear_bandit")

  @jax.jit
  @jax.vmap
  def contexts(key):
    task = family.task(key)
    beliefs, errors = jax.random.split(key)  # the order in which structure_blind draws
    draws = jax.random.normal(beliefs, (200, 10)), jax.random.normal(errors, (200,))
    return task.mean, *draws, family.behave(task, key, 200)

  made = jax.tree.map(np.asarray, contexts(jax.random.split(jax.random.key(0), 10)))
  for mean, draws, errors, action, reward in zip(
    *made[:3], made[3].action, made[3].reward, strict=True
  ):
    wide = (x.astype(np.float64) for x in (mean, draws, errors))
    actions, rewards = thompson_of_numpy(*wide, 0.3)
    np.testing.assert_array_equal(action, actions)
    np.testing.assert_allclose(reward, rewards, atol=1e-5)


def test_contexts_get_better_and_keep_their_order():
  family = contextual.get("linear_bandit")
  assert not family.shuffle

  def lost(key):
    task = family.task(key)
    made = family.behave(task, key, 200)
    return family.best(task) - task.mean[made.action]

  curve = np.asarray(jax.jit(jax.vmap(lost))(jax.random.split(jax.random.key(0), 500))).mean(axis=0)
  assert curve.min() >= 0
  assert curve[-50:].mean() < 0.2 * curve[:10].mean()


def test_the_label_is_the_best_arm():
  family = contextual.get("linear_bandit")
  both = jax.jit(jax.vmap(lambda key: (family.task(key).theta, family.label(family.task(key), ()))))
  theta, label = both(jax.random.split(jax.random.key(1), 20))
  exact = np.asarray(theta, np.float64) @ linear_bandit.features().astype(np.float64).T
  np.testing.assert_array_equal(label, exact.argmax(axis=1))
