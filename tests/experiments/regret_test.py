"""Regret, its growth and win rates, against what was planted."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.common import regret
from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.systems.evolve_bandits import games as verbal_bandits
from grpo_jax.tabular import bandits

FAMILY = contextual.get("bandit", arms=4, steps=20, reward="bernoulli", means="gap", gap=0.5)
TASKS = jax.vmap(FAMILY.task)(jax.random.split(jax.random.key(0), 6))


def games(learner, steps=20):
  played = verbal_bandits.play_learner(FAMILY, TASKS, jax.random.key(1), steps, learner)
  return jax.tree.map(np.asarray, played)


def test_regret_never_falls_counts_sum_to_the_pulls_and_the_best_arm_has_none():
  played = games(bandits.uniform(4))
  total = regret.regret(played.lost)
  assert (np.diff(total, axis=1) >= 0).all() and (total >= 0).all() and total[:, -1].min() > 0
  n = regret.counts(played.action, 4)
  assert (n.sum(axis=2) == np.arange(1, 21)).all()
  best = np.asarray(TASKS.mean).argmax(1)
  optimal = verbal_bandits.play(FAMILY, TASKS, jax.random.key(1), 20, lambda s, a, r, k: best)
  assert (regret.regret(optimal.lost) == 0).all()
  assert (regret.opt_frac(optimal.lost) == 1).all() and not regret.suffix_fail(optimal.lost).any()
  assert (regret.min_frac(optimal.action, 4) == 0).all()


def test_ucb_without_a_bonus_is_greedy_and_with_one_is_not():
  greedy = games(bandits.emp(4))
  same = games(bandits.ucb(4, c=0.0, form="log_t"))
  np.testing.assert_array_equal(greedy.action, same.action)
  assert (greedy.action != games(bandits.ucb(4, form="log_t")).action).any()


def test_exploration_of_a_game_written_out():
  action = np.asarray([[0, 1, 2, 0, 0, 1]])
  lost = np.asarray([[0, 0.5, 0.5, 0, 0, 0.5]])
  np.testing.assert_allclose(regret.opt_frac(lost), [[1, 1 / 2, 1 / 3, 1 / 2, 3 / 5, 1 / 2]])
  np.testing.assert_allclose(regret.min_frac(action, 3), [[0, 0, 1, 3 / 4, 3 / 5, 1 / 2]])
  assert regret.suffix_fail(lost).tolist() == [False]
  assert regret.suffix_fail(np.asarray([[0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0]])).tolist() == [1, 0]
  one = regret.curve(np.asarray([[1.0, 2.0]]))
  assert one.mean.tolist() == [1, 2] and one.error.tolist() == [0, 0]
  two = regret.curve(np.asarray([[1.0], [3.0]]))
  assert two.error == pytest.approx(stats.sem([1, 3]))


@pytest.mark.parametrize(
  "planted",
  [(1.0, 0.0, 0.3, 0.5), (2.0, 0.1, 0.2, 1.0), (0.5, 0.05, 0.4, 0.0), (3.5, 0.0, 0.02, 2.0)],
)
def test_the_fit_finds_planted_parameters(planted):
  truth = regret.Fit(*planted, rmse=0.0)
  found = regret.fit(truth(np.arange(1, 301), 0.5), 0.5)
  np.testing.assert_allclose(found[:4], planted, rtol=1e-4, atol=1e-6)
  assert found.rmse < 1e-6
  noisy = truth(np.arange(1, 301), 0.5) + 0.02 * np.random.default_rng(0).normal(size=300)
  assert regret.fit(noisy, 0.5).beta == pytest.approx(planted[1], abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=5, max_size=40))
def test_the_fit_is_never_negative_and_no_worse_than_a_straight_line(lost):
  mean = np.cumsum(lost)
  t = np.arange(1, len(mean) + 1)
  found = regret.fit(mean, 0.5, np.asarray([0.0, 1.0, 2.0]))
  assert min(found.scale, found.beta, found.constant) >= 0
  slope = max(0.0, mean @ t / (t @ t))
  assert found.rmse <= np.sqrt(np.mean((mean - slope * t) ** 2)) + 1e-6
  left = np.sqrt(np.mean((mean - found(t, 0.5)) ** 2))
  assert left == pytest.approx(found.rmse, abs=1e-6)


def test_one_arm_and_equal_arms_have_no_hardness():
  assert np.isnan(regret.least_gap(np.asarray([0.3])))
  assert regret.least_gap(np.asarray([0.1, 0.9, 0.4])) == pytest.approx(0.5)
  for mean in ([0.3], [0.3, 0.3]):
    with pytest.raises(UserError, match="the best two arms must differ"):
      regret.fit(np.ones(5), regret.least_gap(np.asarray(mean)))
  one = contextual.get("bandit", arms=1, steps=5, reward="bernoulli", means="gap", gap=0.5)
  tasks = jax.vmap(one.task)(jax.random.split(jax.random.key(0), 2))
  played = verbal_bandits.play_learner(one, tasks, jax.random.key(0), 5, bandits.ucb(1))
  played = jax.tree.map(np.asarray, played)
  assert (played.lost == 0).all() and (regret.min_frac(played.action, 1) == 1).all()


def test_win_rates_count_what_welch_can_tell_apart():
  rng = np.random.default_rng(0)
  low, high = rng.normal(size=(2, 30)), 3 + 4 * rng.normal(size=(2, 30))
  assert regret.beats(high[0], low[0]) and not regret.beats(low[0], high[0])
  assert regret.beats(high[0], low[0]) == (
    stats.ttest_ind(high[0], low[0], equal_var=False).pvalue < 0.05
  )
  near = low + 0.01
  rates = regret.win_rates({"low": low, "near": near, "high": high})
  assert rates == {"low": 0.0, "near": 0.0, "high": 1.0}
  assert np.isnan(regret.win_rates({"alone": low})["alone"])
  assert regret.win_rates({"a": np.ones((1, 5)), "b": np.zeros((1, 5))}) == {"a": 1.0, "b": 0.0}
