"""Online learners against transcriptions of the two papers' formulas, in plain float64 Python."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.bandit_counts import no_pulls
from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.tabular import bandits

TASKS, STEPS = 300, 200


@functools.cache
def played(learner, family, count=TASKS, steps=STEPS, seed=0):
  def one(key):
    made, go = jax.random.split(key)
    return bandits.play(learner, family, family.task(made), go, steps)

  keys = jax.random.split(jax.random.key(seed), count)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))


def agree(learner, score, arms=5, untried_first=True, family=None):
  """The learner takes the arm that score(counts, totals) is greatest for, wherever float32 can
  tell; `score` gets float64."""
  family = family or contextual.get("bandit", arms=arms)
  run, told = played(learner, family, count=20), 0
  for actions, rewards in zip(run.action, run.reward, strict=True):
    count, total = np.zeros(arms), np.zeros(arms)
    for action, reward in zip(actions, rewards, strict=True):
      if untried_first and (count == 0).any():
        assert action == np.argmin(count)
      else:
        value = np.asarray(score(count, total))
        order = np.sort(value)
        if order[-1] - order[-2] > 1e-4:
          assert action == value.argmax()
          told += 1
      count[action] += 1
      total[action] += reward
  assert told > 0.9 * 20 * (STEPS - arms)


def mean(count, total):
  return total / np.maximum(1, count)


UCB = {
  "root_n": lambda n, s, c: mean(n, s) + c / np.sqrt(np.maximum(1, n)),
  "log_t": lambda n, s, c: mean(n, s) + np.sqrt(c * math.log(n.sum()) / n),
  "log_t_outside": lambda n, s, c: mean(n, s) + c * np.sqrt(math.log(n.sum()) / n),
}


@pytest.mark.parametrize("c", [None, 0.2])
@pytest.mark.parametrize("form", UCB)
def test_ucb_takes_the_arm_of_the_greatest_bound(form, c):
  default = 1.0 if form == "root_n" else 0.5
  score = lambda n, s: UCB[form](n, s, default if c is None else c)
  agree(bandits.ucb(5, c=c, form=form), score)


def test_emp_takes_the_greatest_mean():
  agree(bandits.emp(5), mean)


def test_ucb_without_bonus_is_emp():
  family = contextual.get("bandit")
  expected = played(bandits.emp(5), family).action
  for form in UCB:
    run = played(bandits.ucb(5, c=0.0, form=form), family).action
    np.testing.assert_array_equal(run, expected)


def test_unknown_forms_are_refused():
  with pytest.raises(UserError, match=r"ucb\.form"):
    bandits.ucb(5, form="ucb1")


def test_linucb_takes_the_arm_of_the_greatest_bound():
  family = contextual.get("linear_bandit")
  phi = contextual.linear_bandit.features()
  wide = phi.astype(np.float64)

  def score(n, s):
    inverse = np.linalg.inv(np.eye(2) + (wide * n[:, None]).T @ wide)
    width = np.sqrt(np.einsum("ai,ij,aj->a", wide, inverse, wide))
    return wide @ (inverse @ (wide.T @ s)) + width

  agree(bandits.linucb(phi), score, arms=10, untried_first=False, family=family)


def test_disjoint_linucb_keeps_one_ridge_regression_an_arm():
  arms, dim, rng = 3, 2, np.random.default_rng(0)
  learner = bandits.linucb_disjoint(arms, dim, c=0.5)
  memory, told = learner.init(), 0
  gram, moment = [np.eye(dim) for _ in range(arms)], [np.zeros(dim) for _ in range(arms)]
  act, observe = jax.jit(learner.act), jax.jit(learner.observe)
  for t in range(60):
    x = rng.normal(size=dim).astype(np.float32)
    inverse = [np.linalg.inv(g) for g in gram]
    scores = np.array(
      [x @ i @ m + 0.5 * np.sqrt(x @ i @ x) for i, m in zip(inverse, moment, strict=True)]
    )
    action = int(act(memory, jax.random.key(t), x))
    order = np.sort(scores)
    if order[-1] - order[-2] > 1e-3:
      assert action == scores.argmax()
      told += 1
    reward = np.float32(rng.normal())
    memory = observe(memory, jnp.int32(action), reward, x)
    gram[action] += np.outer(x, x)
    moment[action] += reward * x
  assert told > 40


def test_disjoint_linucb_breaks_ties_evenly():
  learner = bandits.linucb_disjoint(4, 2)
  act = jax.vmap(lambda key: learner.act(learner.init(), key, jnp.ones(2)))
  drawn = np.bincount(np.asarray(act(jax.random.split(jax.random.key(0), 8000))), minlength=4)
  assert drawn.min() > 1800


def test_successive_elimination_goes_round_and_drops_by_its_intervals():
  arms, noise, delta = 4, 0.5, 0.1
  family = contextual.get("bandit", arms=arms, means="gap", gap=0.8, reward="bernoulli")
  learner = bandits.successive_elimination(arms, noise=noise, delta=delta)
  run = played(learner, family, count=10, steps=400)
  for actions, rewards in zip(run.action, run.reward, strict=True):
    n, s, active = np.zeros(arms), np.zeros(arms), np.ones(arms, bool)
    for action, reward in zip(actions, rewards, strict=True):
      assert active[action] and n[action] == n[active].min()
      n[action] += 1
      s[action] += reward
      with np.errstate(divide="ignore", invalid="ignore"):
        radius = noise * np.sqrt(2 * np.log(4 * arms * n**2 / delta) / n)
      radius[n == 0] = np.inf
      center = mean(n, s)
      active &= center + radius >= (center - radius)[active].max() - 1e-6
    assert active.sum() == 1  # a gap of 0.8 shows within 400 pulls


def test_successive_elimination_keeps_the_best_arm_with_its_probability():
  family = contextual.get("bandit", arms=3, means="gap", gap=0.5, reward="bernoulli")
  run = played(bandits.successive_elimination(3, delta=0.1), family, count=400, steps=600)
  # dropped for good: the best arm is not among the last three rounds
  lost = np.mean(run.suboptimality[:, -9:].min(axis=1) > 0)
  assert lost <= 0.1
  assert run.suboptimality[:, -50:].mean() < 0.2 * run.suboptimality[:, :50].mean()


def regret(learner, family, **kwargs):
  return played(learner, family, **kwargs).suboptimality.mean(axis=0).cumsum()


def test_regret_is_never_negative_and_0_for_the_optimal_arm():
  family = contextual.get("bandit")
  for learner in (bandits.uniform(5), bandits.ucb(5), bandits.thompson_gaussian(5)):
    assert played(learner, family).suboptimality.min() >= 0
  only = contextual.get("bandit", arms=1)
  assert not played(bandits.ucb(1), only, count=5).suboptimality.any()


def test_good_learners_lose_less_and_less_and_much_less_than_chance():
  gaussian, bernoulli = contextual.get("bandit"), contextual.get("bandit", reward="bernoulli")
  for family, learner in (
    (gaussian, bandits.thompson_gaussian(5)),
    (gaussian, bandits.ucb(5)),
    (bernoulli, bandits.thompson_bernoulli(5)),
  ):
    chance = regret(bandits.uniform(5), family)
    lost = regret(learner, family)
    assert lost[-1] < chance[-1] / 3
    assert lost[-1] - lost[STEPS // 2] < 0.5 * lost[STEPS // 2]  # sublinear
    assert abs(chance[-1] / chance[STEPS // 2] - 2) < 0.1  # chance is linear


def test_greedy_learners_stay_with_wrong_arms():
  family = contextual.get("bandit")
  greedy, thompson = (
    played(learner, family, count=1000).suboptimality[:, -50:].mean()
    for learner in (bandits.emp(5), bandits.thompson_gaussian(5))
  )
  assert greedy > 2 * thompson


def test_knowing_the_features_is_worth_it():
  family = contextual.get("linear_bandit")
  phi = contextual.linear_bandit.features()
  blind = regret(bandits.thompson_gaussian(10, mean=0.0, var=1.0), family)[-1]
  assert regret(bandits.thompson_linear(phi), family)[-1] < 0.5 * blind
  assert regret(bandits.linucb(phi), family)[-1] < 0.9 * blind


def test_looking_at_the_context_is_worth_it():
  family = contextual.get("contextual_bandit", arms=5, dim=3)
  contextless = regret(bandits.ucb(5), family)[-1]
  assert regret(bandits.linucb_disjoint(5, 3), family)[-1] < 0.5 * contextless


def test_every_pull_is_counted_once():
  learner = bandits.ucb(3)
  memory = learner.init()
  for action, reward in ((2, 0.5), (0, 1.0), (2, 0.25)):
    memory = learner.observe(memory, jnp.int32(action), jnp.float32(reward))
  np.testing.assert_array_equal(memory.count, [1, 0, 2])
  np.testing.assert_array_equal(memory.total, [1, 0, 0.75])
  np.testing.assert_array_equal(no_pulls(3).mean, 0)
