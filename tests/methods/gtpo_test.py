"""GTPO against its formulas in float64 loops; conflict runs as sets; its invariants."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from transcription_test import difference, mean, rollouts, steps

from grpo_jax.core import conflicts
from grpo_jax.types import Now

LN2 = math.log(2)


def texts(*completions, reward):
  """One prompt; completions as strings, a letter a token; the last rollouts are dead and empty."""
  g, t = 5, 6
  p = problems.ragged(0, n=1, g=g, t=t, dead=0, holes=0)
  p.alive[0] = np.arange(g) < len(completions)
  p.trained[:] = False
  for j, text in enumerate(completions):
    p.trained[0, j] = np.arange(t) < len(text)
    p.tokens[0, j, : len(text)] = [ord(c) for c in text]
  p.reward[0] = np.nan
  p.reward[0, : len(completions)] = reward
  return p


def runs_by_sets(strings, adv):
  """(forward, backward) as lists of booleans, from the definition."""

  def forward(strings):
    out = []
    for text, a in zip(strings, adv, strict=True):
      whole, mine = a != 0, []
      for t, token in enumerate(text):
        at = [(s[t], b) for s, b in zip(strings, adv, strict=True) if t < len(s)]
        good = {x for x, b in at if b > 0}
        bad = {x for x, b in at if b < 0}
        whole = whole and token in good & bad
        mine.append(whole)
      out.append(mine)
    return out

  backward = forward([text[::-1] for text in strings])
  return forward(strings), [x[::-1] for x in backward]


def emphasis(strings, adv, positive=2.0):
  """lambda of every token."""
  out = []
  for a, *both in zip(adv, *runs_by_sets(strings, adv), strict=True):
    one = lambda hit: (positive if a > 0 else 0.0) if hit else 1.0  # noqa: B023
    out.append([one(x) * one(y) for x, y in zip(*both, strict=True)])
  return out


def transcription(p, logp, frozen, *, gamma, limit, starts=True, conflict=True, compat=False):
  entropy = {k: mean([p.fields["entropy_old"][(*k, t)] for t in steps(p, *k)]) for k in rollouts(p)}
  start = mean(list(entropy.values()))
  total = 0.0
  for i in range(len(p.reward)):
    own = [j for j in range(p.reward.shape[1]) if p.alive[i, j]]
    adv = {j: p.reward[i, j] - mean([p.reward[i, k] for k in own]) for j in own}
    if len({p.reward[i, j] for j in own}) == 1:
      adv = dict.fromkeys(own, 0.0)
    strings = [[p.tokens[i, j, t] for t in steps(p, i, j)] for j in own]
    signs = [adv[j] for j in own]
    lam, hits = emphasis(strings, signs), runs_by_sets(strings, signs)
    for at, j in enumerate(own):
      if (i, j) not in entropy:
        continue
      if entropy[i, j] > limit and not (starts and start > limit):
        continue
      push, size = adv[j] - gamma * entropy[i, j], len(strings[at])
      mine = [max(a, b) for a, b in zip(hits[0][at], hits[1][at], strict=True)]
      scale = len(p.reward[i]) / max(1, sum(mine)) if compat else 1.0
      for u, t in enumerate(steps(p, i, j)):
        weight = lam[at][u] if conflict else 1.0
        ratio = math.exp(logp[i, j, t] - frozen[i, j, t])
        total -= scale * push / size * ratio * weight
  return total / len(entropy)


@pytest.mark.parametrize(
  ("kwargs", "alphabet"),
  [
    ({}, 2),
    ({"gamma": 0.3, "entropy_limit": 1.0, "start_rule": False}, 2),
    ({"gamma": 0.1, "entropy_limit": 1.0, "start_rule": False, "code_compat": True}, 1),
    ({"gamma": 0.0, "entropy_limit": 5.0, "conflicts": False}, 2),
  ],
)
def test_value_and_gradient_equal_the_formulas_in_float64_loops(kwargs, alphabet):
  for seed in (0, 1, 2):
    p, q = (
      problems.ragged(seed, n=4, g=4, t=5, dead=0.15, holes=0.15, dtype=d)
      for d in (np.float32, np.float64)
    )
    p.tokens %= alphabet
    q.tokens %= alphabet
    loss, _, grad, *_ = problems.run(problems.get("gtpo", **kwargs), p)
    logp = q.fields["logp"]
    loop = lambda x: transcription(
      q,  # noqa: B023
      x,
      logp,  # noqa: B023
      gamma=kwargs.get("gamma", 0.005),
      limit=kwargs.get("entropy_limit", LN2),
      starts=kwargs.get("start_rule", True),
      conflict=kwargs.get("conflicts", True),
      compat=kwargs.get("code_compat", False),
    )
    np.testing.assert_allclose(loss, loop(logp), rtol=2e-5, atol=2e-6)
    expected = difference(loop, logp)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(np.where(q.trained, grad, 0), expected, rtol=2e-4, atol=2e-6)


# ---- conflicts -----------------------------------------------------------------------------------


_credit = jax.jit(problems.get("gtpo", gamma=0.0, entropy_limit=9.0).credit)


def lambdas(p):
  """lambda of each token from the weights: 1 / (G n_i) times it, with every completion kept."""
  made, batch, _, place = problems.lay_out(p, "flat", ("entropy_old",))
  credit = _credit(jnp.full((1, 1), -1.0), made, batch)
  weight = np.asarray(credit.weight)[place][0] * p.alive.sum() * p.length()[0][:, None]
  return [row[:n].tolist() for row, n in zip(weight, p.length()[0], strict=True) if n]


def close(found, expected):
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_template_tokens_are_doubled_in_the_good_and_left_alone_in_the_bad():
  found = lambdas(texts("AxB", "AyB", reward=[1, 0]))
  close(found, [[2, 1, 2], [0, 1, 0]])


@pytest.mark.parametrize(
  ("completions", "reward", "expected"),
  [
    (("AB", "AB"), [1, 0], [[4, 4], [0, 0]]),  # all of it is both runs
    (("AxCyB", "AzCwB"), [1, 0], [[2, 1, 1, 1, 2], [0, 1, 1, 1, 0]]),  # C is in no run
    (("AB", "ABCD"), [1, 0], [[2, 2], [0, 0, 1, 1]]),  # a prefix; the ends differ
    (("xAB", "AB"), [1, 0], [[1, 2, 2], [0, 0]]),  # the same end at other places
    (("AB", "AB", "AB"), [1, 1, 1], [[1, 1]] * 3),  # no bad one
    (("AB", "AB", "AB"), [1, 0.5, 0], [[4, 4], [1, 1], [0, 0]]),  # A = 0 is inactive
    # in float32 0.3 is not the mean of 0.1, 0.3 and 0.5: still inactive
    (("AB", "AB", "CB"), [0.3, 0.1, 0.5], [[1, 1], [1, 0], [1, 2]]),
    (("AB", "AB", "CB"), [0.3, 0.5, 0.1], [[1, 1], [1, 2], [1, 0]]),
    (("AB",), [1], [[1, 1]]),
  ],
)
def test_runs_of_small_examples(completions, reward, expected):
  close(lambdas(texts(*completions, reward=reward)), expected)


def random_group(seed):
  rng = np.random.default_rng(seed)
  g = int(rng.integers(2, 6))
  strings = ["".join(rng.choice(list("ab"), rng.integers(1, 6))) for _ in range(g)]
  return strings, rng.integers(0, 3, g) - 1.0


@jax.jit
def _runs(tokens, length, sign):
  return conflicts.initial_run(conflicts.shared(tokens, length, sign > 0, sign < 0))


def array_runs(strings, signs, junk=0):
  """bool [5, 6]; the missing completions are empty."""
  tokens, length, sign = np.full((1, 5, 6), junk, np.int32), np.zeros((1, 5), np.int32), np.zeros(5)
  for j, text in enumerate(strings):
    tokens[0, j, : len(text)] = [ord(c) for c in text]
    length[0, j], sign[j] = len(text), signs[j]
  return np.asarray(_runs(tokens, length, sign[None].astype(np.float32)))[0]


def test_runs_equal_the_definition_by_sets_on_random_strings():
  for seed in range(25):
    strings, signs = random_group(seed)
    forward, _ = runs_by_sets(strings, signs)
    found = array_runs(strings, signs)
    assert not found[len(strings) :].any()
    for text, mine, row in zip(strings, forward, found, strict=False):
      assert row[: len(text)].tolist() == mine and not row[len(text) :].any()


_both_runs = jax.jit(conflicts.runs)


def test_backward_runs_are_forward_runs_of_the_reversed_strings():
  for seed in range(12):
    strings, signs = random_group(seed)
    sign = np.pad(signs, (0, 5 - len(signs)))[None]
    found = []
    for order in (1, -1):
      p = texts(*[x[::order] for x in strings], reward=0.0)
      made, batch, *_ = problems.lay_out(p, "flat")
      found.append([np.asarray(x) for x in _both_runs(batch, made, sign > 0, sign < 0)])
    one, other = found
    for j, text in enumerate(strings):
      size = len(text)
      for a, b in ((one[1], other[0]), (one[0], other[1])):
        assert a[j, :size].tolist() == b[j, :size][::-1].tolist()


def test_padding_never_conflicts_whatever_it_holds():
  for junk in (0, ord("a"), ord("b")):
    for seed in range(6):
      strings, signs = random_group(seed)
      found = array_runs(strings, signs, junk)
      assert (found == array_runs(strings, signs, 1)).all()
      assert not any(row[len(x) :].any() for x, row in zip(strings, found, strict=False))


def test_a_bad_completion_never_lowers_a_token_in_conflict():
  p = problems.ragged(1, n=4, g=4, t=5, dead=0)
  p.tokens %= 2
  method = problems.get("gtpo", gamma=0.0)
  grad = problems.run(method, p)[2]
  hit = 0
  for i in range(4):
    adv = p.reward[i] - p.reward[i].mean()
    strings = [[p.tokens[i, j, t] for t in steps(p, i, j)] for j in range(4)]
    for j, lam in enumerate(emphasis(strings, adv)):
      for t, value in zip(steps(p, i, j), lam, strict=True):
        if value == 0:
          hit += 1
          assert adv[j] < 0 and grad[i, j, t] == 0
  assert hit > 5


def test_without_shared_tokens_it_is_centered_rewards_under_means_of_completions():
  p = problems.ragged(2, n=4, g=4)
  p.tokens[:] = np.arange(p.tokens.size).reshape(p.tokens.shape)
  ours = problems.run(problems.get("gtpo", gamma=0.0, entropy_limit=9.0), p)
  p.fields["logp_old"] = p.fields["logp"]
  theirs = problems.run(problems.get("grpo", scale="none"), p)
  np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-5, atol=1e-8)


# ---- entropy -------------------------------------------------------------------------------------


def certain(p, low):
  """Completions in `low` have an entropy below ln 2, the others above."""
  p.fields["entropy_old"][:] = np.where(np.asarray(low)[..., None], 0.1, 1.5)
  return p


def test_uncertain_completions_are_dropped_but_stay_in_the_denominator():
  low = np.asarray([[True, False, True, True]] * 4)
  p = certain(problems.ragged(0, dead=0), low)
  kept = problems.run(problems.get("gtpo", start_rule=False), p)[4]
  every = problems.run(problems.get("gtpo", entropy_limit=9.0), p)[4]
  assert (kept[~low] == 0).all()
  np.testing.assert_array_equal(kept[low], every[low])


def test_all_completions_uncertain_give_a_loss_of_exactly_0():
  p = certain(problems.ragged(0), np.zeros((4, 4), bool))
  loss, metrics, grad, *_ = problems.run(problems.get("gtpo", start_rule=False), p)
  assert loss == 0 and (grad == 0).all()
  np.testing.assert_allclose(metrics["uncertain"], 1, rtol=1e-6)


@pytest.mark.parametrize(("first", "filtered"), [(True, True), (False, False)])
def test_the_entropy_of_the_first_batch_decides_for_the_whole_run(first, filtered):
  method, uncertain = problems.get("gtpo"), np.zeros((4, 4), bool)
  p = certain(problems.ragged(0), uncertain | first)
  made, batch, *_ = problems.lay_out(p, "flat", method.needs)
  state = method.remember(method.init(4), made, batch, Now(metrics={}, step=jnp.int32(0)))
  q = certain(problems.ragged(1), uncertain)
  made, batch, *_ = problems.lay_out(q, "flat", method.needs)
  weight = np.asarray(method.credit(state, made, batch).weight)
  assert (weight == 0).all() == filtered
  again = method.remember(state, made, batch, Now(metrics={}, step=jnp.int32(1)))
  assert again == state and again.dtype == method.init(4).dtype and again.shape == (1, 1)


def test_equal_rewards_leave_a_small_push_down_on_what_was_sampled():
  p = problems.ragged(0, dead=0)
  p.reward[:] = 1.0
  grad = problems.run(problems.get("gtpo", gamma=0.1), p)[2]
  assert (grad[p.trained] > 0).all()
  assert (problems.run(problems.get("gtpo", gamma=0.0), p)[2] == 0).all()
