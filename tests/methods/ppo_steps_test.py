"""PPO with a reward for each unit and with rollouts that go on after the row."""

import jax.numpy as jnp
import numpy as np
import problems
import pytest

from grpo_jax import methods
from grpo_jax.errors import UserError

GAMMA, LAM = 0.9, 0.8


def slow(p, paid, follows):
  """float64 {(i, j, t): (advantage, target)}, by a loop over trained tokens, backwards."""
  out = {}
  n, g, t = p.trained.shape
  for i, j in np.ndindex(n, g):
    if not p.alive[i, j]:
      continue
    steps = [k for k in range(t) if p.trained[i, j, k]]
    adv, value_after = 0.0, follows[i, j]
    for place, k in reversed(list(enumerate(steps))):
      last_of_unit = place + 1 == len(steps) or p.unit[i, j, steps[place + 1]] != p.unit[i, j, k]
      reward = paid[i, j, p.unit[i, j, k]] if last_of_unit else 0.0
      value = float(p.fields["value_old"][i, j, k])
      adv = reward + GAMMA * value_after - value + GAMMA * LAM * adv
      out[i, j, k] = adv, adv + value
      value_after = value
  return out


@pytest.mark.parametrize("layout", ["flat", "shared", "packed"])
@pytest.mark.parametrize("units", [1, 3, 6])
def test_rewards_of_units_and_values_that_follow_are_those_of_a_loop_in_float64(layout, units):
  p = problems.ragged(units, units=units, holes=0.2)
  follows = np.random.default_rng(9).normal(size=p.reward.shape)
  needs = ("value", "logp_old", "unit_reward")
  rollouts, batch, _, (row, col) = problems.lay_out(p, layout, needs, junk=np.nan)
  after = np.full(batch.mask.shape, np.nan, np.float32)
  after[row[p.trained], col[p.trained]] = 0
  for i, j in np.ndindex(p.reward.shape):
    if p.trained[i, j].any():
      k = np.flatnonzero(p.trained[i, j])[-1]
      after[row[i, j, k], col[i, j, k]] = follows[i, j]
  batch = batch.replace(extra={**batch.extra, "bootstrap": jnp.asarray(after)})
  method = methods.get("ppo", gamma=GAMMA, lam=LAM, whiten=False, rewards="unit", bootstrap=True)
  assert method.needs == ("value", "logp_old", "unit_reward", "bootstrap")
  credit = method.credit((), rollouts, batch)
  adv, target = (np.asarray(x) for x in (credit.adv_token, credit.extra["target"]))
  expected = slow(p, p.unit_value.astype(np.float64), follows)
  assert len(expected) > 20
  for (i, j, k), (a, v) in expected.items():
    at = row[i, j, k], col[i, j, k]
    np.testing.assert_allclose((adv[at], target[at]), (a, v), rtol=1e-5, atol=1e-5)
  assert np.all(np.isfinite(adv)) and np.count_nonzero(adv) == len(expected)


def test_one_unit_with_the_reward_of_its_rollout_is_the_plain_method():
  p = problems.ragged(5)
  p.unit_value = np.nan_to_num(p.reward)[..., None]
  needs = ("value", "logp_old", "unit_reward")
  rollouts, batch, *_ = problems.lay_out(p, "packed", needs)
  batch = batch.replace(extra={**batch.extra, "bootstrap": jnp.zeros_like(batch.mask)})
  plain = methods.get("ppo").credit((), rollouts, batch)
  units = methods.get("ppo", rewards="unit", bootstrap=True).credit((), rollouts, batch)
  np.testing.assert_array_equal(plain.adv_token, units.adv_token)
  np.testing.assert_array_equal(plain.extra["target"], units.extra["target"])


def test_an_unknown_place_of_rewards_is_refused():
  with pytest.raises(UserError, match="rewards: unknown name 'step'"):
    methods.get("ppo", rewards="step")
