"""D3S against its formulas in float64 loops, its selection against all subsets, its invariants."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from transcription_test import difference, mean, ppo_term, ratio, rollouts, std, steps

from grpo_jax import methods
from grpo_jax.core import selection
from grpo_jax.errors import UserError


def variance(xs):
  return mean([x * x for x in xs]) - mean(xs) ** 2


def best_subset(values, size):
  """(greatest variance, the subsets that have it), over all subsets."""
  found = [(variance([values[i] for i in s]), s) for s in subsets(len(values), size)]
  top = max(v for v, _ in found)
  return top, [set(s) for v, s in found if v > top - 1e-9]


def subsets(m, size):
  return itertools.combinations(range(m), size)


def standard(rewards):
  m, s = mean(rewards), std(rewards, 0)
  return [0.0 if len(set(rewards)) == 1 else (r - m) / (s + 1e-6) for r in rewards]


def chosen_rollouts(p, adv, share, scope):
  """Indices of S by trying all subsets; advantages here are distinct."""
  here = rollouts(p)
  parts = [here] if scope == "batch" else [[k for k in here if k[0] == i] for i in range(4)]
  kept = []
  for part in parts:
    size = min(max(round(share * len(part)), 2), len(part))
    if size:
      _, best = best_subset([adv[k] for k in part], size)
      assert len(best) == 1 or all(adv[k] == 0 for k in part), "the loop needs a unique answer"
      kept += [part[i] for i in best[0]]
  return kept


def sequence(p, logp, frozen, i, j, t):
  old, ts = p.fields["logp_old"], steps(p, i, j)
  s = math.exp(mean([frozen[i, j, u] - old[i, j, u] for u in ts]))
  return s * math.exp(logp[i, j, t] - frozen[i, j, t])


def transcription(p, logp, frozen, *, share, percent, scope, by, over_all, beta=0.0):
  adv = {}
  for i in range(len(p.reward)):
    own = [j for j in range(p.reward.shape[1]) if p.alive[i, j]]
    adv |= {(i, j): a for j, a in zip(own, standard([p.reward[i, j] for j in own]), strict=True)}
  kept = chosen_rollouts(p, adv, share, scope)
  tokens = [(*k, t) for k in kept for t in steps(p, *k)]
  size = math.ceil(percent / 100 * len(tokens) - 1e-9)
  score = lambda k: abs(adv[k[:2]]) * p.fields["entropy_old"][k]
  top = sorted(tokens, key=lambda k: (-score(k), k))[:size]
  total = 0.0
  for i, j, t in top:
    r = ratio(p, logp, i, j, t) if by == "token" else sequence(p, logp, frozen, i, j, t)
    total += ppo_term(r, adv[i, j])
    x = logp[i, j, t] - p.fields["logp_ref"][i, j, t]
    total += beta * (math.exp(-x) - 1 + x)
  return total / (sum(len(steps(p, *k)) for k in rollouts(p)) if over_all else max(len(top), 1))


@pytest.mark.parametrize(
  ("kwargs", "step"),
  [
    ({}, 0),
    ({"samples": (0.5, 0.8), "tokens": (20.0, 60.0)}, 2),
    ({"samples": (0.5, 1.0), "tokens": (30.0, 100.0), "divide_by": "all"}, 3),
    ({"samples": (0.5, 0.5), "tokens": (50.0, 50.0), "scope": "group", "beta_kl": 0.1}, 1),
    ({"samples": (0.7, 0.5), "tokens": (40.0, 20.0), "ratio": "sequence"}, 9),
  ],
)
def test_value_and_gradient_equal_the_formulas_in_float64_loops(kwargs, step):
  total_steps = 4
  first = {"samples": (0.25, 0.75), "tokens": (10.0, 30.0)} | kwargs
  progress = min(step / total_steps, 1)
  share, percent = (a + progress * (b - a) for a, b in (first["samples"], first["tokens"]))
  extra = {"kl": "k3"} if "beta_kl" in kwargs else {}
  method = problems.get("d3s", total_steps=total_steps, **kwargs, **extra)
  largest_gradient = 0.0
  for seed in (0, 1, 2):
    p, q = (
      problems.ragged(seed, n=4, g=3, t=5, dead=0.15, holes=0.15, dtype=d)
      for d in (np.float32, np.float64)
    )
    made, batch, fwd, place = problems.lay_out(p, "flat", method.needs)
    credit = method.credit((), made.replace(step=jnp.int32(step)), batch)
    loss, metrics, grad, _ = problems.value_and_grad(method, fwd, batch, credit)
    logp = q.fields["logp"]
    loop = lambda x: transcription(
      q,  # noqa: B023
      x,
      logp,  # noqa: B023
      share=share,
      percent=percent,
      scope=kwargs.get("scope", "batch"),
      by=kwargs.get("ratio", "token"),
      over_all="divide_by" in kwargs,
      beta=kwargs.get("beta_kl", 0.0),
    )
    np.testing.assert_allclose(loss, loop(logp), rtol=2e-5, atol=2e-6)
    expected = difference(loop, logp)
    largest_gradient = max(largest_gradient, np.abs(expected).max())
    found = np.where(q.trained, np.asarray(grad)[place], 0)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-6)
    assert float(metrics["trained_tokens"]) == (np.asarray(credit.weight) > 0).sum()
  assert largest_gradient > 1e-3  # of few tokens all may be clipped


# ---- selection -----------------------------------------------------------------------------------


def largest(values, size, candidates=True):
  """One compiled shape: what is missing to 12 values is no candidate."""
  x, inside = np.full(12, np.nan, np.float32), np.zeros(12, bool)
  x[: len(values)], inside[: len(values)] = values, candidates
  x[~inside] = np.nan
  return np.asarray(_largest(x, inside, np.int32(size)))[: len(values)]


_largest = jax.jit(selection.largest_variance)
_top = jax.jit(selection.top)


@pytest.mark.parametrize("m", [2, 5, 8, 10])
def test_the_chosen_subset_has_the_variance_of_the_best_of_all_subsets(m):
  rng = np.random.default_rng(m)
  for trial in range(6):
    values = rng.normal(size=m) if trial % 2 else rng.integers(0, 3, m).astype(float)
    candidates = rng.uniform(size=m) > (0.3 if trial > 3 else 0)
    inside = np.flatnonzero(candidates)
    for size in range(2, m + 1):
      kept = largest(values, size, candidates)
      assert not (kept & ~candidates).any() and kept.sum() == min(size, len(inside))
      if len(inside):
        best, sets = best_subset(values[inside].tolist(), min(size, len(inside)))
        own = variance(values[kept].tolist())
        np.testing.assert_allclose(own, best, rtol=1e-5, atol=1e-5)
        if len(sets) == 1:
          assert set(np.flatnonzero(kept)) == {int(inside[i]) for i in sets[0]}


def test_selection_does_not_depend_on_the_order_of_distinct_values():
  rng = np.random.default_rng(0)
  values, order = rng.normal(size=12), rng.permutation(12)
  for size in range(2, 13):
    assert (largest(values[order], size) == largest(values, size)[order]).all()


def test_equal_variances_take_the_most_even_split():
  kept = largest([-1, -1, -1, 1, 1, 1], 4)
  assert kept[:3].sum() == 2 and kept[3:].sum() == 2


def test_an_even_subset_of_a_standardized_set_has_variance_1_or_more_and_an_odd_one_may_not():
  rng = np.random.default_rng(1)
  for _ in range(10):
    values = standard(rng.normal(size=8).tolist())
    for size in (2, 4, 6):
      assert variance([values[i] for i in np.flatnonzero(largest(values, size))]) > 1 - 1e-5
  kept = np.flatnonzero(largest([-1, -1, 1, 1], 3))
  np.testing.assert_allclose(variance([[-1, -1, 1, 1][i] for i in kept]), 8 / 9)


def test_top_keeps_exactly_the_count_and_of_equal_scores_the_first():
  rng = np.random.default_rng(2)
  for trial in range(6):
    score = np.float32(rng.uniform(size=(3, 7)) if trial % 2 else rng.integers(0, 3, (3, 7)))
    candidates = rng.uniform(size=(3, 7)) > 0.3
    dirty = np.where(candidates, score, np.float32(np.nan))
    order = sorted(np.flatnonzero(candidates), key=lambda i: (-score.flat[i], i))
    for size in (0, 1, 4, len(order), 21):
      kept = np.asarray(_top(dirty, candidates, np.int32(size)))
      assert np.flatnonzero(kept).tolist() == sorted(order[:size])


@pytest.mark.parametrize(("percent", "count", "size"), [(30, 10, 3), (10, 10, 1), (10, 11, 2)])
def test_a_whole_share_is_not_rounded_up(percent, count, size):
  assert selection.ceil_share(jnp.float32(percent / 100), jnp.float32(count)) == size


# ---- the method ----------------------------------------------------------------------------------


def test_everything_kept_equals_grpo_with_a_token_mean():
  p = problems.ragged(5)
  method = problems.get("d3s", total_steps=3, samples=(1.0, 1.0), tokens=(100.0, 100.0))
  assert method.needs == ()
  ours = problems.run(method, p)
  grpo = problems.get("grpo", aggregate="token_mean", ddof=0, eps_std=1e-6)
  np.testing.assert_allclose(ours[2], problems.run(grpo, p)[2], rtol=1e-6, atol=1e-9)


def test_the_quotas_go_from_first_to_last_and_stay_there():
  p = problems.ragged(0, n=4, g=4, dead=0, holes=0)
  method = problems.get("d3s", total_steps=4, samples=(0.25, 0.75), tokens=(100.0, 100.0))
  made, batch, *_ = problems.lay_out(p, "flat", method.needs)
  sizes = []
  for step in range(6):
    weight = np.asarray(method.credit((), made.replace(step=jnp.int32(step)), batch).weight)
    sizes.append(int((weight.sum(1) > 0).sum()))
  assert sizes == [4, 6, 8, 10, 12, 12]


def test_no_variance_anywhere_gives_a_loss_of_exactly_0_on_the_required_count_of_tokens():
  p = problems.ragged(0, dead=0, holes=0)
  p.reward[:] = 0.7
  method = problems.get("d3s", total_steps=4, samples=(0.5, 0.5), tokens=(25.0, 25.0))
  loss, metrics, grad, _, weight = problems.run(method, p)
  assert loss == 0 and (grad == 0).all()
  inside = p.length().reshape(-1)[(weight.sum(-1) > 0).reshape(-1)].sum()
  assert 0 < metrics["trained_tokens"] <= math.ceil(inside)
  np.testing.assert_allclose(weight.sum(), 1, rtol=1e-5)


def test_advantages_are_those_of_the_whole_group_also_after_selection():
  p = problems.ragged(2, dead=0)
  method = problems.get("d3s", total_steps=4)
  made, batch, *_ = problems.lay_out(p, "flat", method.needs)
  adv = np.asarray(method.credit(method.init(4), made, batch).adv).reshape(4, 4)
  expected = [standard(row.astype(float).tolist()) for row in p.reward]
  np.testing.assert_allclose(adv, expected, rtol=1e-4, atol=1e-5)


def test_the_random_control_keeps_as_much_and_changes_with_the_step():
  p = problems.ragged(0, n=4, g=4, dead=0, holes=0)
  made, batch, *_ = problems.lay_out(p, "flat", ("entropy_old",))
  kept = {}
  for pick in ("variance", "random"):
    method = problems.get("d3s", total_steps=4, samples=(0.5, 0.5), tokens=(50.0, 50.0), pick=pick)
    assert ("entropy_old" in method.needs) == (pick == "variance")
    kept[pick] = [
      np.asarray(method.credit((), made.replace(step=jnp.int32(step)), batch).weight) > 0
      for step in (0, 1)
    ]
  rows = lambda x: int((x.sum(1) > 0).sum())
  assert rows(kept["variance"][0]) <= 8 and rows(kept["random"][0]) <= 8
  assert (kept["variance"][0] == kept["variance"][1]).all()
  assert (kept["random"][0] != kept["random"][1]).any()


def test_a_schedule_without_a_step_is_one_line():
  made, batch, *_ = problems.lay_out(problems.ragged(0), "flat", ("entropy_old",))
  with pytest.raises(UserError, match="rollouts.step is None; give the updates"):
    methods.get("d3s", total_steps=4).credit((), made.replace(step=None), batch)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"scope": "prompt"}, "scope: unknown name 'prompt'.*known: batch, group"),
    ({"pick": "best"}, "pick: unknown name 'best'.*known: random, variance"),
    ({"total_steps": 0}, "total_steps=0: must be the length of the schedule"),
    ({"samples": (0.0, 1.0)}, "samples=.*above 0 and at most 1"),
    ({"tokens": (10.0, 200.0)}, "tokens=.*per cent"),
  ],
)
def test_bad_input_is_one_line(kwargs, message):
  with pytest.raises(UserError, match=message):
    methods.get("d3s", **{"total_steps": 4} | kwargs)
