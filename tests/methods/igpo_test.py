"""IGPO against its formulas in float64 loops, and its invariants."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from transcription_test import difference, mean, ppo_term, ratio, rollouts, std, steps

from grpo_jax import methods
from grpo_jax.core import grids, turns
from grpo_jax.errors import UserError

K = 3


def problem(seed, dtype=np.float32, **kwargs):
  p = problems.ragged(seed, n=3, g=4, t=8, dead=0.15, holes=0.2, units=K, dtype=dtype, **kwargs)
  p.unit_value = -np.abs(p.unit_value)  # log-probabilities
  return p


def laid_out(p, method):
  return problems.lay_out(p, "flat", method.needs)


def run(p, name, **kwargs):
  """(loss, gradient [R, T], advantages of the turns [N, G, K])."""
  method, step = problems.compiled(name, **kwargs)
  credit, loss, grad = step((), *laid_out(p, method)[:3])
  return loss, np.asarray(grad), np.asarray(credit.adv).reshape(3, 4, K)


@jax.jit
def turn_rewards(belief, batch, rollouts_, outcome):
  there = grids.exists(batch, rollouts_, K)
  return turns.rewards(turns.gains(belief, batch, rollouts_, there), outcome, there)


def turns_of(p, i, j):
  """Trained tokens of each turn that the rollout has, in order."""
  found = {}
  for t in steps(p, i, j):
    found.setdefault(int(p.unit[i, j, t]), []).append(t)
  return sorted(found.items())


def rewards_by_loops(p, i, j, gain, penalty):
  out = float(p.reward[i, j])
  if penalty is not None and p.truncated[i, j]:
    out = penalty
  at = [p.unit_value[i, j, u] for u, _ in turns_of(p, i, j)]
  at = [math.exp(x) for x in at] if gain == "prob" else at
  return [b - a for a, b in itertools.pairwise(at)] + [out]


def standard(x, pool):
  return (x - mean(pool)) / (std(pool, 1) + 1e-6)


def advantage_by_loops(p, gain, normalize, gamma, penalty):
  """One number for each trained token."""
  adv = {}
  for i in range(len(p.reward)):
    mine = [j for k, j in rollouts(p) if k == i]
    r = {j: rewards_by_loops(p, i, j, gain, penalty) for j in mine}
    if normalize == "position_mean":
      adv |= position_mean_by_loops(p, i, r)
      continue
    every = [x for j in mine for x in r[j]]
    gains = [x for j in mine for x in r[j][:-1]]
    outcomes = [  # of rollouts without a turn too: GRPO counts them
      penalty if penalty is not None and p.truncated[i, j] else float(p.reward[i, j])
      for j in range(p.reward.shape[1])
      if p.alive[i, j]
    ]
    for j in mine:
      if normalize == "joint":
        a = [standard(x, every) for x in r[j]]
      else:
        a = [standard(x, gains) for x in r[j][:-1]] + [standard(r[j][-1], outcomes)]
      for k, (_, ts) in enumerate(turns_of(p, i, j)):
        back = sum(gamma ** (m - k) * a[m] for m in range(k, len(a)))
        adv |= {(i, j, t): back for t in ts}
  return adv


def position_mean_by_loops(p, i, r):
  back = {}
  for j, x in r.items():
    ends = [ts[-1] for _, ts in turns_of(p, i, j)]
    for t in range(ends[-1] + 1):
      back[j, t] = sum(y for y, e in zip(x, ends, strict=True) if e >= t)
  return {
    (i, j, t): back[j, t] - mean([back[m, t] for m in r if (m, t) in back])
    for j in r
    for t in steps(p, i, j)
  }


def loss_by_loops(p, adv, logp, beta):
  total = 0.0
  for i, j in rollouts(p):
    terms = []
    for t in steps(p, i, j):
      x = p.fields["logp_ref"][i, j, t] - logp[i, j, t]
      kl = math.exp(x) - x - 1
      terms.append(ppo_term(ratio(p, logp, i, j, t), adv[i, j, t]) + beta * kl)
    total += mean(terms)
  return total / len(rollouts(p))


CASES = [
  ("prob", "joint", 1.0, -2.0),
  ("log", "joint", 0.9, None),
  ("prob", "separate", 1.0, -2.0),
  ("log", "separate", 0.5, -2.0),
  ("prob", "position_mean", 1.0, None),
]


@pytest.mark.parametrize(("gain", "normalize", "gamma", "penalty"), CASES)
def test_value_and_gradient_equal_the_formulas_in_loops(gain, normalize, gamma, penalty):
  seed = CASES.index((gain, normalize, gamma, penalty))
  p, wide = problem(seed), problem(seed, np.float64)
  method, step = problems.compiled(
    "igpo", gain=gain, normalize=normalize, gamma=gamma, penalty=penalty
  )
  rollouts_, batch, fwd, place = laid_out(p, method)
  _, loss, grad = step((), rollouts_, batch, fwd)
  adv = advantage_by_loops(wide, gain, normalize, gamma, penalty)
  by_loops = lambda x: loss_by_loops(wide, adv, x, 1e-3)
  np.testing.assert_allclose(loss, by_loops(wide.fields["logp"]), rtol=1e-4, atol=1e-5)
  expected = difference(by_loops, wide.fields["logp"])
  assert np.abs(expected).max() > 1e-3
  found = np.where(p.trained, np.asarray(grad)[place], 0)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_gains_of_zero_and_separate_pools_are_grpo_on_the_outcome():
  p = problem(6)
  p.unit_value[:] = -0.7
  kwargs = {"normalize": "separate", "penalty": None, "beta_kl": 0.0}
  a, b = run(p, "igpo", **kwargs), run(p, "grpo", eps_std=1e-6)
  assert np.abs(a[1]).max() > 1e-3
  np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
  np.testing.assert_allclose(a[1], b[1], rtol=1e-6, atol=1e-9)


def test_gamma_0_gives_each_turn_its_own_normalized_reward_only():
  p = problem(7)
  adv = run(p, "igpo", gamma=0.0, penalty=None)[2]
  for i in range(3):
    r = {j: rewards_by_loops(p, i, j, "prob", None) for k, j in rollouts(p) if k == i}
    pool = [x for each in r.values() for x in each]
    for j, each in r.items():
      for (u, _), x in zip(turns_of(p, i, j), each, strict=True):
        assert adv[i, j, u] == pytest.approx(standard(x, pool), abs=1e-5)


def test_gains_telescope_to_the_belief_before_the_last_turn_minus_that_of_the_prompt():
  p = problem(8)
  rollouts_, batch, *_ = laid_out(p, problems.get("igpo"))
  belief = jnp.exp(batch.extra["answer_logp"])
  total = np.asarray(turn_rewards(belief, batch, rollouts_, jnp.zeros((3, 4)))).sum(-1)
  several = 0
  for i, j in rollouts(p):
    us = [u for u, _ in turns_of(p, i, j)]
    expected = math.exp(p.unit_value[i, j, us[-1]]) - math.exp(p.unit_value[i, j, us[0]])
    assert total[i, j] == pytest.approx(expected, abs=1e-6)
    several += len(us) > 2
  assert several > 1


def test_no_gradient_reaches_the_belief():
  p = problem(9)
  method = problems.get("igpo")
  rollouts_, batch, fwd, _ = laid_out(p, method)

  def loss(belief):
    b = batch.replace(extra={"answer_logp": belief})
    return method.loss(fwd, b, method.credit((), rollouts_, b))[0]

  at = batch.extra["answer_logp"]
  of = jax.jit(jax.value_and_grad(loss))
  assert float(of(at)[0]) != float(of(2 * at)[0])
  assert (np.asarray(of(at)[1]) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_belief_that_is_not_finite_gives_the_turns_beside_it_no_gain(bad):
  p = problem(10)
  p.alive[:], p.trained[:], p.reward[:] = True, True, 0.5
  p.unit[:] = np.minimum(np.arange(8) // 2, K - 1)
  p.unit_value[0, 0, 1] = bad
  rollouts_, batch, *_ = laid_out(p, problems.get("igpo"))
  belief = batch.extra["answer_logp"]
  found = np.asarray(turn_rewards(belief, batch, rollouts_, rollouts_.reward))
  np.testing.assert_array_equal(found[0, 0], [0, 0, 0.5])
  assert np.isfinite(found).all() and np.isfinite(run(p, "igpo", gain="log")[2]).all()


def test_rollouts_of_one_turn_have_the_outcome_only():
  p = problem(11)
  p.unit[:] = 0
  kwargs = {"penalty": None, "beta_kl": 0.0}
  a = run(p, "igpo", **kwargs)[1]
  p.unit_value[:] = -3
  np.testing.assert_array_equal(run(p, "igpo", **kwargs)[1], a)
  p.trained[..., 0] = True  # GRPO's groups hold rollouts without a token too
  a, c = run(p, "igpo", **kwargs)[1], run(p, "grpo", eps_std=1e-6)[1]
  assert np.abs(a).max() > 1e-3
  np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-8)


def test_equal_rewards_of_all_turns_and_dead_groups_give_exactly_0():
  p = problem(12)
  p.truncated[:], p.reward = False, np.where(p.alive, np.float32(0.7), np.nan)
  for kwargs in ({"gain": "constant", "bonus": 0.7}, {"gain": "given"}):
    p.unit_value[:] = 0.7
    _, grad, adv = run(p, "igpo", beta_kl=0.0, **kwargs)
    assert (grad == 0).all() and (adv == 0).all()
  p.alive[0], p.reward[0] = False, np.nan
  _, grad, adv = run(p, "igpo", beta_kl=0.0)
  assert (grad[:4] == 0).all() and (adv[0] == 0).all() and np.isfinite(adv).all()


def test_a_constant_gain_is_a_reward_for_turns():
  p = problem(13)
  p.truncated[:], p.reward = False, np.where(p.alive, np.float32(0), np.nan)
  assert problems.get("igpo", gain="constant").needs == ("ref",)
  adv = run(p, "igpo", gain="constant", bonus=0.5)[2]
  for i, j in rollouts(p):
    own = [u for u, _ in turns_of(p, i, j)]
    assert adv[i, j, own[-1]] <= 0 and all(adv[i, j, u] > adv[i, j, own[-1]] for u in own[:-1])


def test_the_belief_is_the_mean_over_the_answers_own_tokens():
  rng = np.random.default_rng(14)
  logp = rng.normal(size=(2, 3, 6)).astype(np.float32)
  mask = np.zeros((2, 3, 6), np.float32)
  mask[..., 2:4] = 1  # bridge before, closing tag and padding after
  found = turns.belief(jnp.asarray(logp), jnp.asarray(mask))
  np.testing.assert_allclose(found, logp[..., 2:4].mean(-1), rtol=1e-6)
  logp[..., [0, 1, 4, 5]] = np.nan
  np.testing.assert_array_equal(turns.belief(jnp.asarray(logp), jnp.asarray(mask)), found)
  assert np.isnan(turns.belief(jnp.zeros((1, 2)), jnp.zeros((1, 2)))).all()


def test_missing_beliefs_packed_rows_and_unknown_names_are_one_line():
  p = problem(15)
  rollouts_, batch, *_ = problems.lay_out(p, "flat")
  with pytest.raises(UserError, match="the batch has no answer_logp"):
    jax.eval_shape(methods.get("igpo").credit, (), rollouts_, batch)
  with pytest.raises(UserError, match="the batch has no unit_reward"):
    jax.eval_shape(methods.get("igpo", gain="given").credit, (), rollouts_, batch)
  packed = problems.lay_out(p, "shared")[1]
  with pytest.raises(UserError, match="one rollout a row"):
    method = methods.get("igpo", gain="constant", normalize="position_mean")
    jax.eval_shape(method.credit, (), rollouts_, packed)
  for field in ("gain", "normalize"):
    with pytest.raises(UserError, match=f"{field}: unknown name 'x'; known: "):
      methods.get("igpo", **{field: "x"})
