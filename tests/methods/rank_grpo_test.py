"""Rank-GRPO against its formulas in float64 loops, and its invariants."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from transcription_test import difference, mean, ppo_term, rollouts, std, steps

from grpo_jax import methods
from grpo_jax.core import ranking
from grpo_jax.errors import UserError

RANKS = 3


def lists(seed, n=3, g=4, t=9, end=True, dtype=np.float32):
  """Rollouts as lists: p.newlines [N, G, T]; a terminated one ends with a stop token."""
  p = problems.ragged(seed, n=n, g=g, t=t, dead=0.1, holes=0.0, dtype=dtype, units=RANKS)
  rng = np.random.default_rng([seed, 4])
  p.newlines = np.zeros(p.trained.shape, int)
  for i, j in np.ndindex(n, g):
    length = rng.integers(1, t - 1)
    p.trained[i, j] = np.arange(t) < length + 1
    p.newlines[i, j, :length] = rng.choice([0, 1, 2], length, p=[0.55, 0.4, 0.05])
  p.rel = rng.integers(0, 2, (n, g, RANKS))
  return p


def segment(p, i, j, t):
  """Newline characters in earlier tokens; ids from RANKS on are one bin."""
  return min(sum(p.newlines[i, j, s] for s in range(t)), RANKS)


def laid_out(p, method):
  rollouts_, batch, fwd, place = problems.lay_out(p, "flat", method.needs)
  rows, t = batch.mask.shape
  unit = [segment(p, *at) for at in np.ndindex(*p.trained.shape)]
  unit = jnp.asarray(np.reshape(unit, (rows, t)), jnp.int32)
  there = np.zeros((rows, RANKS + 1), np.float32)
  for r, t in np.argwhere(np.asarray(batch.mask)):
    there[r, unit[r, t]] = 1
  rel = np.where(there[:, :RANKS] > 0, p.rel.reshape(rows, RANKS), np.nan)
  rel = np.concatenate([rel, np.full((rows, 1), np.nan)], axis=1)  # overflow has no relevance
  return (
    rollouts_,
    batch.replace(
      unit=unit,
      unit_mask=jnp.asarray(there),
      owner=jnp.broadcast_to(jnp.arange(rows)[:, None], there.shape),
      unit_reward=jnp.asarray(rel, jnp.float32),
    ),
    fwd,
    place,
  )


def relevance(p, i, j, k):
  """0 for a line that is missing."""
  there = any(segment(p, i, j, t) == k for t in steps(p, i, j))
  return float(p.rel[i, j, k]) if there else 0.0


def reward_by_loops(p, i, j, k, kind):
  rel = lambda m: relevance(p, i, j, m)
  return {
    "hit": lambda: rel(k),
    "dcg": lambda: sum(rel(m) / math.log2(m + 2) for m in range(k, RANKS)),
    "decay": lambda: sum(rel(m) / 3.0 ** (m - k) for m in range(k, RANKS)),
  }[kind]()


def stop_token(p, i, j):
  return None if p.truncated[i, j] else steps(p, i, j)[-1]


def advantage_by_loops(p, kind, shaping):
  adv = {}
  for i, j in rollouts(p):
    ts, stop = steps(p, i, j), stop_token(p, i, j)
    ids = {t: segment(p, i, j, t) for t in ts}
    written = [ids[t] for t in ts if t != stop]
    for t in ts:
      k = ids[t]
      if t == stop:
        full, over = RANKS - 1 in written, RANKS in written
        adv[i, j, t] = (0.0 if over else shaping) if full else -shaping
      elif k == RANKS:
        adv[i, j, t] = -shaping
      else:
        group = [
          reward_by_loops(p, i, m, k, kind) for m in range(p.reward.shape[1]) if p.alive[i, m]
        ]
        mine = reward_by_loops(p, i, j, k, kind)
        adv[i, j, t] = (mine - mean(group)) / (std(group, 1) + 1e-4)
  return adv


def loss_by_loops(p, adv, reduction, drop, logp):
  kept = [k for k in rollouts(p) if not (drop and p.truncated[k])]
  total, tokens = 0.0, 0
  for i, j in kept:
    lines = {}
    for t in steps(p, i, j):
      lines.setdefault(segment(p, i, j, t), []).append(t)
    for ts in lines.values():
      w = math.exp(mean([logp[i, j, t] - p.fields["logp_old"][i, j, t] for t in ts]))
      terms = []
      for t in ts:
        x = p.fields["logp_ref"][i, j, t] - logp[i, j, t]
        kl = math.exp(x) - x - 1
        terms.append(ppo_term(w, adv[i, j, t], 0.06, 0.08) + 1e-3 * kl)
      total += mean(terms) / (len(kept) * RANKS) if reduction == "rank_mean" else sum(terms)
      tokens += len(ts)
  return total if reduction == "rank_mean" else total / tokens


@pytest.mark.parametrize("kind", ["hit", "dcg", "decay"])
@pytest.mark.parametrize("reduction", ["rank_mean", "token_mean"])
def test_value_and_gradient_equal_the_formulas_in_loops(kind, reduction):
  seed, drop = {"hit": 0, "dcg": 1, "decay": 2}[kind], kind == "dcg"
  p, wide = lists(seed), lists(seed, dtype=np.float64)
  for q in (p, wide):
    q.fields["logp"] = q.fields["logp_old"] + 0.2 * (q.fields["logp"] - q.fields["logp_old"])
  method, step = problems.compiled(
    "rank_grpo", ranks=RANKS, reward=kind, gamma=3.0, reduction=reduction, drop_truncated=drop
  )
  rollouts_, batch, fwd, place = laid_out(p, method)
  _, loss, grad = step((), rollouts_, batch, fwd)
  adv = advantage_by_loops(wide, kind, shaping=0.1)
  by_loops = lambda x: loss_by_loops(wide, adv, reduction, drop, x)
  np.testing.assert_allclose(loss, by_loops(wide.fields["logp"]), rtol=5e-5, atol=5e-6)
  expected = difference(by_loops, wide.fields["logp"])
  assert np.abs(expected).max() > 1e-3
  found = np.where(p.trained, np.asarray(grad)[place], 0)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=5e-6)


@pytest.mark.parametrize("reduction", ["rank_mean", "token_mean"])
def test_at_ratio_1_the_gradient_is_that_of_token_level_policy_gradient_with_rank_advantages(
  reduction,
):
  """Sum_k A_k sum_t grad logp_t / tokens, or the lines weighed by 1 / (|line| N G ranks)."""
  p = lists(3)
  p.fields["logp"] = p.fields["logp_old"]
  method, step = problems.compiled(
    "rank_grpo", ranks=RANKS, reduction=reduction, shaping=0.0, end_token=False, beta_kl=0.0
  )
  rollouts_, batch, fwd, place = laid_out(p, method)
  credit, _, grad = step((), rollouts_, batch, fwd)
  grad = np.asarray(grad)[place]
  adv = np.asarray(credit.adv).reshape(3, 4, RANKS + 1)
  kept = rollouts(p)
  tokens = sum(len(steps(p, *k)) for k in kept)
  expected = np.zeros_like(grad)
  for i, j in kept:
    ids = [segment(p, i, j, t) for t in steps(p, i, j)]
    for t, k in zip(steps(p, i, j), ids, strict=True):
      share = tokens if reduction == "token_mean" else ids.count(k) * len(kept) * RANKS
      expected[i, j, t] = -adv[i, j, k] / share
  assert np.abs(expected).max() > 1e-3
  np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-8)


def test_one_rank_without_shaping_is_gspo_with_the_same_reward():
  p = problems.ragged(4, holes=0.0)
  p.unit_value = np.nan_to_num(p.reward)[..., None]
  bounds = {"eps_low": 0.06, "eps_high": 0.08}
  plain = {"shaping": 0.0, "end_token": False, "beta_kl": 0.0}
  ours, step = problems.compiled("rank_grpo", ranks=1, **plain, **bounds)
  rollouts_, batch, fwd, _ = problems.lay_out(p, "flat", ours.needs)
  _, loss, grad = step((), rollouts_, batch, fwd)
  _, loss2, grad2 = problems.compiled("gspo", **bounds)[1]((), rollouts_, batch, fwd)
  assert np.abs(grad).max() > 1e-3
  np.testing.assert_allclose(loss, loss2, rtol=1e-6)
  np.testing.assert_allclose(grad, grad2, rtol=1e-5, atol=1e-8)


def test_lines_of_one_token_have_the_ratio_of_the_token():
  p = problems.ragged(5, t=4, holes=0.0, units=4)
  p.unit[:] = np.arange(4)
  kwargs = {"ranks": 4, "shaping": 0.0, "end_token": False, "beta_kl": 0.0}
  method, step = problems.compiled("rank_grpo", reduction="token_mean", **kwargs)
  rollouts_, batch, fwd, _ = problems.lay_out(p, "flat", method.needs)
  credit, loss, _ = step((), rollouts_, batch, fwd)
  adv = np.asarray(credit.adv).reshape(p.trained.shape)
  terms = [
    ppo_term(math.exp(p.fields["logp"][k] - p.fields["logp_old"][k]), adv[k], 0.06, 0.08)
    for k in ((i, j, t) for i, j in rollouts(p) for t in steps(p, i, j))
  ]
  assert float(loss) == pytest.approx(mean(terms), rel=1e-5)


def test_dcg_rewards_differ_by_their_own_hit_and_the_first_is_the_dcg_of_the_list():
  rel = jnp.asarray(np.random.default_rng(6).integers(0, 2, (5, 7)), jnp.float32)
  r = np.asarray(ranking.rank_rewards(rel, "dcg"))
  own = np.asarray(rel) / np.log2(np.arange(2, 9))
  np.testing.assert_allclose(r[:, 0], own.sum(1), rtol=1e-6)
  np.testing.assert_allclose(r[:, :-1] - r[:, 1:], own[:, :-1], atol=1e-6)
  far = ranking.rank_rewards(rel, "decay", gamma=1e9)
  np.testing.assert_allclose(far, ranking.rank_rewards(rel, "hit"), atol=1e-6)


@pytest.mark.parametrize("kind", ranking.REWARDS)
def test_a_hit_changes_no_reward_of_a_later_rank(kind):
  rel = np.random.default_rng(7).integers(0, 2, 6).astype(np.float32)
  base = np.asarray(ranking.rank_rewards(jnp.asarray(rel), kind))
  for j in range(6):
    other = rel.copy()
    other[j] = 1 - other[j]
    new = np.asarray(ranking.rank_rewards(jnp.asarray(other), kind))
    np.testing.assert_allclose(new[j + 1 :], base[j + 1 :], atol=1e-6)
    assert abs(new[j] - base[j]) > 1e-3


@pytest.mark.parametrize(
  ("newlines", "truncated", "expected"),
  [
    ([1, 1, 1, 0], False, [0, 0, 0, 0.1]),  # three lines and the stop token
    ([1, 1, 0, 0], False, [0, 0, 0, 0.1]),  # the last line without a newline
    ([1, 1, 0], False, [0, 0, -0.1]),  # two lines
    ([0], False, [-0.1]),  # nothing but the stop token
    ([1, 1, 1, 0, 0], False, [0, 0, 0, -0.1, 0]),  # overflow
    ([1, 1, 1, 0, 0], True, [0, 0, 0, -0.1, -0.1]),  # overflow without an end
    ([1, 1], True, [0, 0]),
  ],
)
def test_length_shaping_is_added_to_advantages_that_are_else_0(newlines, truncated, expected):
  p = lists(9, n=1, g=2, t=5)
  p.alive[:], p.reward[:], p.truncated[:], p.rel[:] = True, 0, truncated, 0
  size = len(newlines)
  p.trained[:], p.newlines[:] = np.arange(5) < size, 0
  p.newlines[..., :size] = newlines
  method, step = problems.compiled("rank_grpo", ranks=RANKS)
  rollouts_, batch, fwd, _ = laid_out(p, method)
  found = np.asarray(step((), rollouts_, batch, fwd)[0].adv_token)[0, :size]
  np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_rank_without_hits_has_no_advantage_and_missing_lines_count_as_misses():
  p = lists(10, n=1, g=2, t=5)
  p.alive[:], p.reward[:], p.truncated[:] = True, 0, True
  p.trained[:] = [[np.arange(5) < 3, np.arange(5) < 1]]
  p.newlines[:] = 1
  p.rel[:] = [[[1, 1, 0], [1, 1, 1]]]  # the second list has one line only
  method, step = problems.compiled("rank_grpo", ranks=RANKS, shaping=0.0)
  rollouts_, batch, fwd, _ = laid_out(p, method)
  adv = np.asarray(step((), rollouts_, batch, fwd)[0].adv)
  half = 0.5 / (math.sqrt(0.5) + 1e-4)
  np.testing.assert_allclose(adv, [[0, half, 0, 0], [0, 0, 0, 0]], rtol=1e-5)


def test_a_group_of_one_missing_relevance_and_unknown_names_are_one_line():
  p = lists(12, g=1)
  method = problems.get("rank_grpo", ranks=RANKS)
  rollouts_, batch, *_ = laid_out(p, method)
  with pytest.raises(UserError, match="at least 2 rollouts"):
    jax.eval_shape(method.credit, (), rollouts_, batch)
  rollouts_, batch, *_ = problems.lay_out(lists(12), "flat")
  with pytest.raises(UserError, match="batch.unit_reward is missing"):
    jax.eval_shape(method.credit, (), rollouts_, batch)
  for field in ("reward", "reduction"):
    with pytest.raises(UserError, match=f"{field}: unknown name 'x'"):
      methods.get("rank_grpo", **{field: "x"})
  with pytest.raises(UserError, match="ranks=0: must be"):
    methods.get("rank_grpo", ranks=0)
