"""Multi-armed bandits against the formulas of papers 26 and 27."""

import jax
import numpy as np
import pytest
from scipy import stats

from grpo_jax.envs import contextual
from grpo_jax.envs.contextual import bandit

MANY = 20_000


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def many(function, *args, count=MANY, seed=0):
  return np.asarray(jax.jit(jax.vmap(lambda k: function(*args, k)))(keys(count, seed)))


def policies(arms):
  return many(lambda key: bandit.behaviour(key, arms))


def test_the_behaviour_policy_has_the_exact_moments_of_its_formula():
  arms = 5
  p = policies(arms)
  np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
  assert p.min() >= 0
  c = np.arange(11) / 10
  square, cross = np.mean(c**2), np.mean(c * (1 - c))
  second = np.mean((1 - c) ** 2) * 2 / (arms * (arms + 1)) + 2 * cross / arms**2 + square / arms
  error = 4 * p.std(axis=0) / MANY**0.5
  np.testing.assert_array_less(abs(p.mean(axis=0) - 1 / arms), error)
  error = 4 * (p**2).std(axis=0) / MANY**0.5
  np.testing.assert_array_less(abs((p**2).mean(axis=0) - second), error)


def test_the_behaviour_policy_is_distributed_as_numpys_transcription():
  arms, rng = 5, np.random.default_rng(1)
  c = rng.choice(np.arange(11) / 10, (MANY, 1))
  point = np.eye(arms)[rng.integers(arms, size=MANY)]
  oracle = (1 - c) * rng.dirichlet(np.ones(arms), MANY) + c * point
  p = policies(arms)
  for statistic in (np.max, np.min, lambda x, axis: x[:, 2]):
    ours, theirs = statistic(p, axis=1), statistic(oracle, axis=1)
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
  certain = np.mean(p.max(axis=1) == 1)  # c = 1
  assert stats.binomtest(int(certain * MANY), MANY, 1 / 11).pvalue > 1e-3


@pytest.mark.parametrize("p", [[0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.5, 0.0], [1.0, 0, 0, 0], [1.0]])
def test_arms_are_drawn_by_the_policy_and_never_at_probability_0(p):
  p = np.asarray(p, np.float32)
  draw = jax.jit(bandit.choose, static_argnums=2)
  drawn = np.bincount(draw(jax.random.key(0), p, MANY), minlength=len(p))
  assert drawn.sum() == MANY and not drawn[p == 0].any()
  if np.sum(p > 0) > 1:
    assert stats.chisquare(drawn[p > 0], MANY * p[p > 0]).pvalue > 1e-3


def rewards(family):
  """(means of the arms, MANY transitions, MANY steps of arm 2) of one task."""

  @jax.jit
  def made(key):
    task = family.task(key)
    step = lambda key: family.step(task, np.ones(1, np.float32), np.int32(2), key)[1]
    stepped = jax.vmap(step)(jax.random.split(key, MANY))
    return task.mean, family.behave(task, key, MANY), stepped

  return jax.tree.map(np.asarray, made(jax.random.key(1)))


def test_gaussian_rewards_have_the_mean_of_the_arm_and_the_noise():
  mean, made, stepped = rewards(contextual.get("bandit", noise=0.3))
  assert stats.kstest((made.reward - mean[made.action]) / 0.3, "norm").pvalue > 1e-3
  assert stats.kstest((stepped - mean[2]) / 0.3, "norm").pvalue > 1e-3
  np.testing.assert_array_equal(made.state, 1)
  np.testing.assert_array_equal(made.next_state, 1)


def test_bernoulli_rewards_are_0_or_1_with_the_mean_of_the_arm():
  mean, made, stepped = rewards(contextual.get("bandit", reward="bernoulli"))
  assert set(np.unique(made.reward)) == set(np.unique(stepped)) == {0.0, 1.0}
  assert len(set(made.action)) == 5
  for arm in range(5):
    mine = stepped if arm == 2 else made.reward[made.action == arm]
    assert stats.binomtest(int(mine.sum()), len(mine), float(mean[arm])).pvalue > 1e-3


def test_means_are_of_the_three_kinds():
  uniform = many(lambda key: contextual.get("bandit").task(key).mean, count=4000)
  assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
  wide = contextual.get("bandit", means="normal", spread=3.0, noise=3.0)
  assert (
    stats.kstest(many(lambda key: wide.task(key).mean, count=4000).ravel() / 3, "norm").pvalue
    > 1e-3
  )
  gap = contextual.get("bandit", means="gap", gap=0.2, reward="bernoulli")
  means = many(lambda key: gap.task(key).mean, count=4000)
  np.testing.assert_allclose(np.sort(means, axis=1), [[0.4, 0.4, 0.4, 0.4, 0.6]] * 4000, rtol=1e-6)
  assert stats.chisquare(np.bincount(means.argmax(axis=1), minlength=5)).pvalue > 1e-3


def test_the_label_is_the_best_arm_and_best_its_mean():
  family = contextual.get("bandit", arms=7)

  @jax.jit
  @jax.vmap
  def asked(key):
    task, state = family.task(key), family.query(None, key)
    means = jax.vmap(lambda a: family.mean(task, state, a))(np.arange(7))
    return means, family.label(task, state), family.best(task)

  means, label, best = asked(keys(20))
  np.testing.assert_array_equal(label, np.argmax(means, axis=1))
  np.testing.assert_array_equal(best, np.max(means, axis=1))
