"""Offline rules against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.core.bandit_counts import Counts
from grpo_jax.envs import contextual
from grpo_jax.tabular import bandits

ARMS, STEPS = 5, 60


def data(seed):
  rng = np.random.default_rng(seed)
  action = rng.choice(ARMS, STEPS, p=rng.dirichlet(np.ones(ARMS))).astype(np.int32)
  return action, rng.normal(rng.uniform(size=ARMS)[action], 0.3).astype(np.float32)


def table(action, reward):
  count, total = np.zeros(ARMS), np.zeros(ARMS)
  np.add.at(count, action, 1)
  np.add.at(total, action, reward.astype(np.float64))
  return count, total


def test_prefix_tallies_are_the_tallies_of_all_beginnings():
  action, reward = data(0)
  every = bandits.prefix_tallies(jnp.asarray(action), jnp.asarray(reward), ARMS)
  assert every.count.shape == every.total.shape == (STEPS + 1, ARMS)
  for h in (0, 1, 7, STEPS):
    one = bandits.tally(jnp.asarray(action[:h]), jnp.asarray(reward[:h]), ARMS)
    count, total = table(action[:h], reward[:h])
    for counts in (one, jax.tree.map(lambda x, h=h: x[h], every)):
      np.testing.assert_array_equal(counts.count, count)
      np.testing.assert_allclose(counts.total, total, atol=1e-5)


def test_rules_are_those_of_numpy_on_every_prefix():
  phi = np.random.default_rng(9).normal(size=(ARMS, 3)).astype(np.float32)
  wide = phi.astype(np.float64)
  for seed in range(5):
    action, reward = data(seed)
    every = bandits.prefix_tallies(jnp.asarray(action), jnp.asarray(reward), ARMS)
    emp, lcb = bandits.emp_offline(every), bandits.lcb_offline(every)
    ridge = bandits.linear_offline(every, phi)
    for h in range(STEPS + 1):
      count, total = table(action[:h], reward[:h])
      mean = total / np.maximum(1, count)
      bound = mean - 0.8 / np.sqrt(np.maximum(1, count))
      x = wide[action[:h]]
      theta = np.linalg.solve(np.eye(3) + x.T @ x, x.T @ reward[:h].astype(np.float64))
      for chosen, score in ((emp[h], mean), (lcb[h], bound), (ridge[h], wide @ theta)):
        assert score[chosen] >= score.max() - 1e-5


def test_of_equal_arms_the_first_is_taken():
  none = Counts(count=jnp.zeros(ARMS), total=jnp.zeros(ARMS))
  assert int(bandits.emp_offline(none)) == int(bandits.lcb_offline(none)) == 0


def test_pessimism_distrusts_a_single_lucky_pull():
  counts = Counts(count=jnp.array([1.0, 100.0]), total=jnp.array([1.0, 70.0]))
  assert int(bandits.emp_offline(counts)) == 0 and int(bandits.lcb_offline(counts)) == 1
  assert int(bandits.lcb_offline(counts, c=0.0)) == 0


def test_thompson_takes_the_arm_that_is_best_most_often():
  counts = Counts(count=jnp.array([0.0, 4.0, 40.0]), total=jnp.array([0.0, 3.2, 28.0]))
  rng = np.random.default_rng(0)
  precision = 12 + np.array([0, 4, 40]) / 0.09
  center = (6 + np.array([0, 3.2, 28.0]) / 0.09) / precision
  best = (center + rng.normal(size=(200_000, 3)) / np.sqrt(precision)).argmax(axis=1)
  share = np.bincount(best, minlength=3) / len(best)
  keys = jax.random.split(jax.random.key(0), 2000)
  rule = lambda draws: lambda key: bandits.thompson_offline(counts, key, draws=draws)
  many = np.asarray(jax.jit(jax.vmap(rule(100)))(keys))
  one = np.asarray(jax.jit(jax.vmap(rule(1)))(keys))
  np.testing.assert_allclose(np.bincount(one, minlength=3) / 2000, share, atol=0.045)
  votes = rng.multinomial(100, share, 50_000).argmax(axis=1)
  np.testing.assert_allclose(
    np.bincount(many, minlength=3) / 2000, np.bincount(votes, minlength=3) / 50_000, atol=0.045
  )


def test_rules_of_prefixes_have_one_answer_each():
  action, reward = data(3)
  every = bandits.prefix_tallies(jnp.asarray(action), jnp.asarray(reward), ARMS)
  chosen = bandits.thompson_offline(every, jax.random.key(0))
  assert chosen.shape == (STEPS + 1,) and chosen.dtype == jnp.int32


def test_all_rules_lose_less_with_more_data_of_dpts_contexts():
  family = contextual.get("bandit")

  def lost(key):
    made, drawn, draw = jax.random.split(key, 3)
    task = family.task(made)
    context = family.behave(task, drawn, 200)
    every = bandits.prefix_tallies(context.action, context.reward, 5)
    rules = (
      bandits.emp_offline(every),
      bandits.lcb_offline(every),
      bandits.thompson_offline(every, draw),
    )
    return jnp.stack([family.best(task) - task.mean[rule] for rule in rules])

  keys = jax.random.split(jax.random.key(0), 400)
  emp, lcb, thompson = np.asarray(jax.jit(jax.vmap(lost))(keys)).mean(axis=0)
  for curve in (emp, lcb, thompson):
    assert curve.min() >= 0 and curve[-1] < 0.5 * curve[1]
  assert thompson[10] < emp[10]  # it knows the prior, and emp takes no arm for worth 0
