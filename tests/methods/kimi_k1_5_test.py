"""Kimi k1.5 against its formulas in float64 loops; squared surrogate; length reward; sampling."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from transcription_test import difference, mean, rollouts, steps

from grpo_jax import methods
from grpo_jax.core import length_rewards, log_partition, sequences
from grpo_jax.errors import UserError
from grpo_jax.types import Fwd, Now, Rollouts, rows_of


def short(lengths, right):
  """The length reward of one group."""
  low, high = min(lengths), max(lengths)
  if low == high:
    return [0.0] * len(lengths)
  lam = [0.5 - (n - low) / (high - low) for n in lengths]
  return [x if ok else min(0.0, x) for x, ok in zip(lam, right, strict=True)]


def rewards(p, i, w):
  own = [j for j in range(p.reward.shape[1]) if p.alive[i, j]]
  extra = (
    short([int(p.length()[i, j]) for j in own], [p.reward[i, j] > 0 for j in own]) if own else []
  )
  return {j: p.reward[i, j] + w * x for j, x in zip(own, extra, strict=True)}


def baseline_of(values, kind, tau):
  if kind == "mean":
    return mean(values)
  top = max(values)
  return top + tau * math.log(mean([math.exp((r - top) / tau) for r in values]))


def transcription(p, logp, *, tau, w, kind, by_mean=False, negatives=True):
  total = 0.0
  for i, j in rollouts(p):
    r, ts = rewards(p, i, w), steps(p, i, j)
    size = len(ts) if by_mean else 1
    s = sum(logp[i, j, t] for t in ts) / size
    gain = s - sum(p.fields["logp_old"][i, j, t] for t in ts) / size
    push = r[j] - baseline_of(list(r.values()), kind, tau)
    push = push if negatives else max(push, 0.0)
    total += -push * s + tau / 2 * gain**2
  return total / len(rollouts(p))


@pytest.mark.parametrize(
  "kwargs",
  [
    {},
    {"tau": 0.5, "baseline": "log_z", "length_weight": 0.0},
    {"length_normalize": True, "length_weight": 1.0},
    {"tau": 0.3, "negatives": False},
    {"tau": 0.3, "length_warmup": 1},  # at step 0: none yet
  ],
)
def test_value_and_gradient_equal_the_formulas_in_float64_loops(kwargs):
  by_mean = kwargs.get("length_normalize", False)
  w = 0.0 if kwargs.get("length_warmup") else kwargs.get("length_weight", 0.5)
  for seed in (0, 1, 2):
    p, q = (
      problems.ragged(seed, n=4, g=4, t=5, dead=0.2, holes=0.15, dtype=d)
      for d in (np.float32, np.float64)
    )
    loss, _, grad, *_ = problems.run(problems.get("kimi_k1_5", **kwargs), p)
    loop = lambda x: transcription(
      q,  # noqa: B023
      x,
      tau=kwargs.get("tau", 0.1 if by_mean else 0.02),
      w=w,
      kind=kwargs.get("baseline", "mean"),
      by_mean=by_mean,
      negatives=kwargs.get("negatives", True),
    )
    logp = q.fields["logp"]
    np.testing.assert_allclose(loss, loop(logp), rtol=2e-5, atol=2e-6)
    expected = difference(loop, logp)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(np.where(q.trained, grad, 0), expected, rtol=2e-4, atol=2e-6)


# ---- the objective -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "log_z"])
def test_gradient_is_that_of_the_squared_surrogate_over_2_tau(kind):
  p, tau = problems.ragged(3, dead=0), 0.4
  method = problems.get("kimi_k1_5", tau=tau, baseline=kind, length_weight=0.0)
  grad = problems.run(method, p)[2]
  b = np.asarray([[baseline_of(row.tolist(), kind, tau)] for row in p.reward.astype(float)])
  trained, old = p.trained, p.fields["logp_old"]

  def surrogate(logp):
    gain = jnp.sum(jnp.where(trained, logp - old, 0), axis=-1)
    return jnp.mean((p.reward - b.astype(np.float32) - tau * gain) ** 2) / (2 * tau)

  present = p.trained.any(-1)
  assert present.all()
  expected = jax.grad(surrogate)(jnp.asarray(p.fields["logp"]))
  np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)


def test_at_the_policy_that_sampled_it_is_reinforce_with_the_mean_of_the_group():
  p = problems.ragged(4, n=1, g=8, dead=0)
  p.fields["logp"] = p.fields["logp_old"]
  ours = problems.run(problems.get("kimi_k1_5", length_weight=0.0), p)
  theirs = problems.run(problems.get("reinforce"), p)  # one group: its mean is the batch's
  np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-5, atol=1e-8)


def test_exact_surrogate_is_least_at_pi_exp_r_over_tau():
  """All 9 sequences of 2 tokens once: exact under a uniform pi_i; no gradient at the optimum."""
  tau, a = 0.7, 3
  tokens = np.asarray(list(itertools.product(range(a), range(a))))
  reward = np.random.default_rng(0).normal(size=a * a)
  best = np.exp(reward / tau).reshape(a, a)
  best /= best.sum()
  first = np.log(best.sum(1))
  second = np.log(best) - first[:, None]
  with jax.enable_x64(True):
    made = Rollouts(
      prompt=jnp.zeros(1, jnp.int32),
      reward=jnp.asarray(reward)[None],
      alive=jnp.ones((1, 9), bool),
      correct=jnp.ones((1, 9), bool),
      truncated=jnp.zeros((1, 9), bool),
      length=jnp.full((1, 9), 2, jnp.int32),
    )
    batch = rows_of(made, jnp.asarray(tokens, jnp.int32), jnp.ones((9, 2)))
    old = jnp.full((9, 2), -math.log(a))
    batch = batch.replace(
      logp_old=old,
      mask=batch.mask.astype(jnp.float64),
      unit_mask=batch.unit_mask.astype(jnp.float64),
    )

    def gradient(table, kind):
      method = problems.get("kimi_k1_5", tau=tau, baseline=kind, length_weight=0.0)

      def loss(table):
        table = jax.nn.log_softmax(table, axis=1)
        logp = jnp.stack([table[0, tokens[:, 0]], table[1 + tokens[:, 0], tokens[:, 1]]], axis=1)
        credit = method.credit(method.init(1), made, batch)
        return method.loss(Fwd(logp=logp), batch, credit)[0]

      return np.asarray(jax.grad(loss)(table))

    optimum = jnp.asarray(np.concatenate([first[None], second]))
    np.testing.assert_allclose(gradient(optimum, "log_z"), 0, atol=1e-12)
    elsewhere = optimum + 0.1 * np.random.default_rng(1).normal(size=optimum.shape)
    assert np.abs(gradient(elsewhere, "log_z")).max() > 1e-3


def test_log_z_baseline_tends_to_the_mean_and_is_exactly_0_for_equal_rewards():
  reward = jnp.asarray([[1.0, 0.0, 0.25, jnp.nan], [0.7, 0.7, 0.7, 0.7]])
  alive = jnp.asarray([[True, True, True, False], [True] * 4])
  found = np.asarray(log_partition.center_by_log_z(reward, alive, 1000.0))
  expected = np.asarray([1.0, 0.0, 0.25]) - 1.25 / 3
  np.testing.assert_allclose(found[0, :3], expected, atol=1e-3)
  assert (found[1] == 0).all() and found[0, 3] == 0
  sharp = np.asarray(log_partition.center_by_log_z(reward, alive, 1e-3))
  np.testing.assert_allclose(sharp[0, 0], 1e-3 * math.log(3), rtol=1e-3)


def test_one_response_a_prompt_teaches_nothing_and_equal_rewards_only_pull_back():
  method = problems.get("kimi_k1_5", length_weight=0.0)
  p = problems.ragged(0, n=4, g=1, dead=0)
  p.fields["logp"] = p.fields["logp_old"]
  assert (problems.run(method, p)[2] == 0).all()
  q = problems.ragged(0, dead=0)
  q.reward[:] = 0.7
  grad = problems.run(method, q)[2]
  gain = np.where(q.trained, q.fields["logp"] - q.fields["logp_old"], 0).sum(-1)
  expected = np.where(q.trained, 0.02 * gain[..., None] / (q.length() > 0).sum(), 0)
  np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-8)


def test_a_response_of_several_units_is_one_sum():
  p = problems.ragged(0, n=2, g=2, t=6, units=3, dead=0)
  for layout in ("flat", "shared"):
    _, batch, fwd, place = problems.lay_out(p, layout)
    found = np.asarray(sequences.sum_of_rollout(fwd.logp, batch))[place]
    total = np.where(p.trained, p.fields["logp"], 0).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.where(p.trained, total, 0), rtol=1e-5)


# ---- length reward -------------------------------------------------------------------------------


def test_length_reward_equals_the_formula_and_its_bounds():
  rng = np.random.default_rng(0)
  length = rng.integers(1, 9, (6, 5))
  length[0] = 4  # all equal
  correct, alive = rng.uniform(size=(6, 5)) > 0.5, rng.uniform(size=(6, 5)) > 0.2
  alive[1] = False
  found = np.asarray(
    length_rewards.relative_length(
      jnp.asarray(length, jnp.int32), jnp.asarray(correct), jnp.asarray(alive)
    )
  )
  for i in range(6):
    own = np.flatnonzero(alive[i])
    expected = short(length[i, own].tolist(), correct[i, own].tolist()) if len(own) else []
    np.testing.assert_allclose(found[i, own], expected, rtol=1e-6)
  assert (found[~alive] == 0).all() and (found[0] == 0).all() and np.isfinite(found).all()
  assert (found[~correct] <= 0).all() and found.max() <= 0.5 and found.min() >= -0.5


def test_the_shortest_right_one_gets_a_half_and_the_longest_loses_a_half():
  length, right = jnp.asarray([[2, 6, 4, 2]], jnp.int32), jnp.asarray([[True, True, False, False]])
  found = length_rewards.relative_length(length, right, jnp.ones((1, 4), bool))
  np.testing.assert_allclose(found, [[0.5, -0.5, 0.0, 0.0]])


def test_the_length_reward_begins_after_its_warm_up():
  p = problems.ragged(0, dead=0)
  method = problems.get("kimi_k1_5", length_warmup=2)
  made, batch, *_ = problems.lay_out(p, "flat")
  state, advs = method.init(4), []
  for step in range(4):
    advs.append(np.asarray(method.credit(state, made, batch).adv))
    state = method.remember(state, made, batch, Now(metrics={}, step=jnp.int32(step)))
  plain, full = (
    np.asarray(problems.get("kimi_k1_5", length_weight=w).credit(method.init(4), made, batch).adv)
    for w in (0.0, 0.5)
  )
  for adv, expected in zip(advs, (plain, plain, full, full), strict=True):
    np.testing.assert_array_equal(adv, expected)


# ---- sampling by success -------------------------------------------------------------------------


def visit(method, state, prompt, correct, alive=None, step=0):
  correct = np.asarray(correct, bool)
  alive = np.ones_like(correct) if alive is None else np.asarray(alive, bool)
  made = Rollouts(
    prompt=jnp.asarray(prompt, jnp.int32),
    reward=jnp.asarray(correct, jnp.float32),
    alive=jnp.asarray(alive),
    correct=jnp.asarray(correct),
    truncated=jnp.zeros(correct.shape, bool),
    length=jnp.ones(correct.shape, jnp.int32),
  )
  return method.remember(state, made, None, Now(metrics={}, step=jnp.int32(step)))


def test_prompts_are_drawn_in_proportion_to_their_failures():
  method = problems.get("kimi_k1_5", memory=1.0)
  state = method.init(5)
  assert (np.asarray(method.weigh(state)) == 1).all()
  state = visit(method, state, [1, 3], [[1, 1, 0, 0], [1, 1, 1, 1]])
  np.testing.assert_allclose(method.weigh(state), [1, 0.5, 1, 0, 1])
  state = visit(method, state, [1, 4], [[1, 1, 1, 0], [1, 0, 0, 1]], [[1, 1, 1, 1], [1, 0, 0, 0]])
  np.testing.assert_allclose(method.weigh(state), [1, 3 / 8, 1, 0, 0], rtol=1e-6)


def test_old_visits_fade_and_a_prompt_without_alive_rollouts_was_not_visited():
  method = problems.get("kimi_k1_5", memory=0.5)
  state = visit(method, method.init(2), [0, 1], [[0, 0], [0, 0]])
  state = visit(method, state, [0, 1], [[1, 1], [1, 1]], [[1, 1], [0, 0]])
  np.testing.assert_allclose(method.weigh(state), [1 - 2 / 3, 1], rtol=1e-6)


def test_all_solved_is_uniform_and_without_prioritizing_there_are_no_weights():
  method = problems.get("kimi_k1_5")
  state = visit(method, method.init(2), [0, 1], [[1, 1], [1, 1]])
  assert np.asarray(method.weigh(state)).tolist() == [1, 1]
  assert problems.get("kimi_k1_5", prioritize=False).weigh is None


def test_state_keeps_its_shapes_and_types_and_the_optimizer_starts_anew():
  method = problems.get("kimi_k1_5")
  before = method.init(3)
  after = visit(method, before, [0, 0], [[1, 0], [1, 1]], step=4)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes(before) and after["step"] == 5
  assert (
    method.fresh_optimizer and not problems.get("kimi_k1_5", reset_optimizer=False).fresh_optimizer
  )
  np.testing.assert_allclose(method.weigh(after)[0], 0.25)  # one visit with four rollouts


def test_bad_input_is_one_line():
  with pytest.raises(UserError, match="baseline: unknown name 'median'.*log_z, mean"):
    methods.get("kimi_k1_5", baseline="median")
  with pytest.raises(UserError, match="tau=0.*: must be above 0"):
    methods.get("kimi_k1_5", tau=0.0)
