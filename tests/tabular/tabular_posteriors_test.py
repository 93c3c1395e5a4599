"""What learners believe, against float64 numpy: conjugate updates one reward at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.bandit_counts import Counts, gaussian_posterior, no_pulls, pull
from grpo_jax.tabular import bandits, linear

ARMS, STEPS = 4, 150


def pulls(seed=0, arms=ARMS):
  rng = np.random.default_rng(seed)
  action = rng.integers(arms - 1, size=STEPS).astype(np.int32)  # the last arm is never pulled
  return action, rng.normal(0.4, 0.5, STEPS).astype(np.float32)


def counted(action, reward, arms=ARMS):
  one = lambda counts, now: (pull(counts, *now), None)
  return jax.lax.scan(one, no_pulls(arms), (jnp.asarray(action), jnp.asarray(reward)))[0]


@pytest.mark.parametrize(
  ("mean", "var", "noise"), [(0.5, 1 / 12, 0.3), (0.0, 1.0, 0.3), (2.0, 9.0, 3.0)]
)
def test_the_gaussian_posterior_is_that_of_one_update_a_reward(mean, var, noise):
  action, reward = pulls()
  precision, weighted = np.full(ARMS, 1 / var), np.full(ARMS, mean / var)
  for a, r in zip(action, reward.astype(np.float64), strict=True):
    precision[a] += 1 / noise**2
    weighted[a] += r / noise**2
  center, spread = gaussian_posterior(counted(action, reward), mean=mean, var=var, noise=noise)
  np.testing.assert_allclose(center, weighted / precision, rtol=1e-5)
  np.testing.assert_allclose(spread, 1 / precision, rtol=1e-5)
  assert center[-1] == np.float32(mean) and spread[-1] == np.float32(var)


def test_without_noise_one_reward_is_the_arm():
  center, spread = gaussian_posterior(
    Counts(count=jnp.array([0.0, 1.0]), total=jnp.array([0.0, 0.7])), mean=0.5, var=0.1, noise=0.0
  )
  np.testing.assert_allclose(center, [0.5, 0.7], rtol=1e-6)
  np.testing.assert_allclose(spread, [0.1, 0.0], rtol=1e-6)


def shares(learner, memory, count=40_000):
  act = jax.jit(jax.vmap(lambda key: learner.act(memory, key)))
  arms = act(jax.random.split(jax.random.key(7), count))
  return np.bincount(np.asarray(arms), minlength=ARMS) / count


def told(learner, action, reward):
  one = lambda memory, now: (learner.observe(memory, *now), None)
  return jax.lax.scan(one, learner.init(), (jnp.asarray(action), jnp.asarray(reward)))[0]


def test_gaussian_thompson_acts_with_the_posterior_probability_that_an_arm_is_best():
  action, reward = pulls()
  action, reward = action[:12], reward[:12]
  learner = bandits.thompson_gaussian(ARMS)
  precision, weighted = np.full(ARMS, 12.0), np.full(ARMS, 6.0)
  np.add.at(precision, action, 1 / 0.09)
  np.add.at(weighted, action, reward / 0.09)
  draws = np.random.default_rng(0).normal(size=(400_000, ARMS))
  best = (weighted / precision + draws / np.sqrt(precision)).argmax(axis=1)
  expected = np.bincount(best, minlength=ARMS) / len(best)
  np.testing.assert_allclose(shares(learner, told(learner, action, reward)), expected, atol=0.012)


def test_bernoulli_thompson_acts_with_the_posterior_probability_that_an_arm_is_best():
  action, reward = pulls()
  action, reward = action[:12], (reward[:12] > 0.4).astype(np.float32)
  learner = bandits.thompson_bernoulli(ARMS, a=2.0, b=3.0)
  alpha, beta = np.full(ARMS, 2.0), np.full(ARMS, 3.0)
  np.add.at(alpha, action, reward)
  np.add.at(beta, action, 1 - reward)
  best = np.random.default_rng(0).beta(alpha, beta, (400_000, ARMS)).argmax(axis=1)
  expected = np.bincount(best, minlength=ARMS) / len(best)
  np.testing.assert_allclose(shares(learner, told(learner, action, reward)), expected, atol=0.012)


@pytest.mark.parametrize(("prior", "noise"), [(1.0, 1.0), (0.5, 0.3)])
def test_the_linear_belief_is_ridge_regression(prior, noise):
  rng = np.random.default_rng(1)
  x = rng.normal(size=(STEPS, 3)).astype(np.float32)
  reward = (x @ [0.3, -0.8, 0.1] + 0.3 * rng.normal(size=STEPS)).astype(np.float32)
  one = lambda belief, now: (linear.learn(belief, *now, noise), None)
  belief, _ = jax.lax.scan(one, linear.believe(3, prior), (jnp.asarray(x), jnp.asarray(reward)))
  x, reward = x.astype(np.float64), reward.astype(np.float64)
  cov = np.linalg.inv(np.eye(3) / prior + x.T @ x / noise**2)
  np.testing.assert_allclose(belief.cov, cov, atol=2e-6)
  np.testing.assert_allclose(belief.mean, cov @ x.T @ reward / noise**2, atol=2e-5)


def test_linear_thompson_acts_with_the_posterior_probability_that_an_arm_is_best():
  rng = np.random.default_rng(2)
  phi = rng.normal(size=(ARMS, 2)).astype(np.float32)
  action, reward = pulls()
  action, reward = action[:5], reward[:5]
  learner = bandits.thompson_linear(phi, noise=0.5)
  x = phi[action].astype(np.float64)
  cov = np.linalg.inv(2 * np.eye(2) + x.T @ x / 0.25)
  theta = rng.multivariate_normal(cov @ x.T @ reward / 0.25, cov, 400_000)
  expected = np.bincount((theta @ phi.T).argmax(axis=1), minlength=ARMS) / len(theta)
  np.testing.assert_allclose(shares(learner, told(learner, action, reward)), expected, atol=0.012)
