"""Contextual bandits: users, tastes and the low-rank model of ratings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from grpo_jax.envs import contextual
from grpo_jax.envs.contextual.contextual_bandit import low_rank

RATINGS = np.random.default_rng(0).integers(0, 6, (230, 12)).astype(np.float64)


def users_of(family, task, count=4000):
  """(who came, what is seen of them)"""
  keys = jax.random.split(jax.random.key(1), count)
  states = jax.jit(jax.vmap(lambda key: family.query(task, key)))(keys)
  states = np.unique(np.asarray(states))
  return states, np.asarray(jax.jit(jax.vmap(family.observe))(states))


def test_the_label_is_the_best_item_of_the_user_and_best_its_mean_over_users():
  family = contextual.get("contextual_bandit", users=30)
  task = jax.jit(family.task)(jax.random.key(0))
  who, users = users_of(family, task)
  np.testing.assert_array_equal(who, np.arange(family.states))
  assert len(np.unique(users, axis=0)) == 30
  score = users.astype(np.float64) @ np.asarray(task.weight, np.float64).T
  labels = jax.jit(jax.vmap(lambda state: family.label(task, state)))(who)
  np.testing.assert_array_equal(labels, score.argmax(axis=1))
  np.testing.assert_allclose(family.best(task), score.max(axis=1).mean(), rtol=1e-5)


def made(noise):
  """(transitions, their noiseless rewards, next users and rewards of steps from user 7, the
  noiseless reward of those)."""
  family = contextual.get("contextual_bandit", noise=noise)

  @jax.jit
  def run(key):
    task = family.task(key)
    context = family.behave(task, key, 20_000)
    step = lambda key: family.step(task, jnp.int32(7), context.action[0], key)
    first = family.observe(jnp.int32(7))
    return task.weight, first, context, jax.vmap(step)(jax.random.split(key, 20_000))

  weight, first, context, (after, stepped) = jax.tree.map(np.asarray, run(jax.random.key(0)))
  weight = weight.astype(np.float64)
  exact = (weight[context.action] * context.state).sum(axis=1)
  return context, exact, after, stepped, weight[context.action[0]] @ first


def test_rewards_are_the_inner_product_with_the_user_who_came():
  context, exact, after, stepped, one = made(0.0)
  np.testing.assert_allclose(context.reward, exact, atol=1e-5)
  np.testing.assert_allclose(stepped, one, atol=1e-5)
  np.testing.assert_array_equal(context.next_state[:-1], context.state[1:])
  assert len(np.unique(after)) == len(np.unique(context.state, axis=0)) == 200


def test_noise_is_a_standard_deviation():
  context, exact, _, stepped, one = made(0.5)
  assert stats.kstest((context.reward - exact) / 0.5, "norm").pvalue > 1e-3
  assert stats.kstest((stepped - one) / 0.5, "norm").pvalue > 1e-3


def test_ratings_are_cut_to_the_best_approximation_of_their_rank():
  users, weight = low_rank(RATINGS, 10, 20)
  np.testing.assert_allclose(users @ weight.T, RATINGS[:, :10], atol=1e-4)  # rank 10 is all of it
  users, weight = low_rank(RATINGS, 10, 4)
  assert users.shape == (230, 4) and weight.shape == (10, 4)
  tail = np.linalg.svd(RATINGS[:, :10], compute_uv=False)[4:]
  error = np.linalg.norm(users @ weight.T - RATINGS[:, :10])
  assert error == pytest.approx(np.linalg.norm(tail), rel=1e-5)  # Eckart and Young


def test_users_of_a_rating_matrix_are_split_at_200():
  seen = []
  for held, rows in ((False, RATINGS[:200, :10]), (True, RATINGS[200:, :10])):
    family = contextual.get("contextual_bandit", ratings=RATINGS, dim=20, heldout_users=held)
    task = family.task(jax.random.key(0))
    seen.append({tuple(user) for user in users_of(family, task)[1].tolist()})
    np.testing.assert_allclose(family.best(task), rows.max(axis=1).mean(), rtol=1e-4)
  assert len(seen[0]) == 200 and len(seen[1]) == 30 and not seen[0] & seen[1]
