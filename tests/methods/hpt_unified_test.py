"""HPT against its formulas in float64 loops; the estimator's table row by row; its gates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from transcription_test import difference, mean, rollouts, std, steps

from experiments.hpt_unified import rivals
from grpo_jax import methods
from grpo_jax.core import unified
from grpo_jax.errors import UserError
from grpo_jax.rollout import given as given_rows
from grpo_jax.types import Batch, Rollouts


def problem(seed, dtype=np.float32, g=5, **kwargs):
  """The last column is given; one question lacks its demonstration."""
  p = problems.ragged(seed, n=4, g=g, t=5, dtype=dtype, **kwargs)
  p.given[:, -1] = True
  p.alive[1, -1] = False
  return p


def correct(p, i, j):
  return p.alive[i, j] and p.reward[i, j] > 0


def transcription(p, logp, *, coefficients, c_sft, beta, tokens_mean):
  """L of the paper; coefficients(solved, n) -> (alpha, beta) of a question."""
  here = set(rollouts(p))
  questions = {i for i, _ in here}
  rl, sft, kept, shown = 0.0, 0.0, [], 0
  for i in questions:
    own = [j for j in range(p.reward.shape[1]) if p.alive[i, j] and not p.given[i, j]]
    demos = [j for j in range(p.reward.shape[1]) if (i, j) in here and p.given[i, j]]
    alpha, weight = coefficients(sum(correct(p, i, j) for j in own), len(own))
    if not demos:
      alpha, weight = 1.0, 0.0
    for j in own:
      adv = p.reward[i, j] - mean([p.reward[i, k] for k in own])
      if len({p.reward[i, k] for k in own}) == 1:
        adv = 0.0
      for t in steps(p, i, j):
        rl -= alpha * adv * math.exp(logp[i, j, t] - p.fields["logp_old"][i, j, t]) / 9
      kept += [p.fields["entropy"][i, j, t] for t in steps(p, i, j) if alpha > 0]
    for j in demos:
      if weight > 0:
        terms = [-logp[i, j, t] for t in steps(p, i, j)]
        sft += weight * (sum(terms) if tokens_mean else mean(terms))
        shown += len(terms)
        kept += [p.fields["entropy"][i, j, t] for t in steps(p, i, j)]
  sft = sft / max(shown, 1) if tokens_mean else sft / len(questions)
  return rl / len(questions) + c_sft * sft - beta * (mean(kept) if kept else 0)


def switch(gate):
  return lambda solved, n: (1.0, 0.0) if n and solved / n > gate else (float(gate < 0), gate >= 0)


TABLE = ((0.0, 1.0), (0.125, 0.5), (0.5, 0.125), (1.0, 0.0), (1.0, 0.0))


@pytest.mark.parametrize(
  ("kwargs", "coefficients"),
  [
    ({}, switch(0.0)),
    ({"gate": 0.5, "sft_mean": "tokens", "sft_coef": 0.3}, switch(0.5)),
    ({"gate": 2 / 4, "beta_entropy": 0.0}, switch(0.5)),
    ({"table": TABLE, "beta_entropy": 0.1}, lambda solved, n: TABLE[solved]),
  ],
)
def test_value_and_gradient_equal_the_formulas_in_float64_loops(kwargs, coefficients):
  for seed in (0, 1, 2):
    p, q = (problem(seed, d, dead=0.2, holes=0.15) for d in (np.float32, np.float64))
    method = problems.get("hpt_unified", max_tokens=9, **kwargs)
    loss, _, grad, *_ = problems.run(method, p)
    loop = lambda x: transcription(
      q,  # noqa: B023
      x,
      coefficients=coefficients,
      c_sft=kwargs.get("sft_coef", 1.0),
      beta=kwargs.get("beta_entropy", 0.001),
      tokens_mean=kwargs.get("sft_mean") == "tokens",
    )
    logp = q.fields["logp"]
    np.testing.assert_allclose(loss, loop(logp), rtol=2e-5, atol=2e-6)
    expected = difference(loop, logp)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(np.where(q.trained, grad, 0), expected, rtol=2e-4, atol=2e-6)


# ---- the table -----------------------------------------------------------------------------------

ROWS = {
  "sft": ("sft", {}),
  "reinforce": ("reinforce", {"baseline": "none"}),
  "ppo": ("ppo", {"value_coef": 0.0, "whiten": False}),
  "grpo": ("grpo", {}),
  "cispo": ("cispo", {"eps_high": 0.3, "eps_low": 0.2}),
  "gspo": ("gspo", {"eps_low": 0.1, "eps_high": 0.1}),
  "srft_offline": (lambda pi: pi, None),
  "luffy_offline": (lambda pi: pi / (pi + 0.1), None),
}


def group_adv(p):
  adv = np.zeros(p.reward.shape)
  for i, j in np.ndindex(*adv.shape):
    group = p.reward[i].astype(np.float64).tolist()
    adv[i, j] = (group[j] - mean(group)) / (std(group, 1) + 1e-4)
  return adv[..., None] + np.zeros(p.trained.shape)


def row_of_the_table(name, p, credit, place):
  """(logp_ref, A, 1_stable), all [N, G, T], as the table has them."""
  logp, old = p.fields["logp"].astype(float), p.fields["logp_old"].astype(float)
  adv, ratio, one = group_adv(p), np.exp(logp - old), np.ones_like(logp)
  clip = lambda a, r, low, high: ~(((a > 0) & (r > 1 + high)) | ((a < 0) & (r < 1 - low)))
  if name == "sft":
    return logp, one, one
  if name == "reinforce":
    return logp, p.reward[..., None] * one, one
  if name == "ppo":
    adv = np.asarray(credit.adv_token, float)[place]
    return old, adv, clip(adv, ratio, 0.2, 0.2)
  if name == "grpo":
    return old, adv, clip(adv, ratio, 0.2, 0.2)
  if name == "cispo":  # its "mask" is a factor: what the clip leaves of the ratio
    return old, adv, np.clip(ratio, 0.8, 1.3) / ratio
  if name == "gspo":
    shift = np.where(p.trained, old - logp, 0).sum(-1) / np.maximum(p.length(), 1)
    ref = logp + shift[..., None]
    return ref, adv, clip(adv, np.exp(logp - ref), 0.1, 0.1)
  if name == "srft_offline":
    return 0 * one, adv, one
  return 0 * one, adv, 0.1 / (np.exp(logp) + 0.1) ** 2  # f' of f = pi / (pi + 0.1)


@pytest.mark.parametrize("name", ROWS)
def test_row_of_the_table_has_the_gradient_of_the_methods_usual_loss(name):
  p = problems.ragged(7, dead=0, holes=0.1)
  which, kwargs = ROWS[name]
  method = problems.get(which, **kwargs) if kwargs is not None else problems.get("grpo")
  made, batch, fwd, place = problems.lay_out(p, "flat", method.needs)
  credit = method.credit((), made, batch)
  weight = np.asarray(credit.weight)[place]
  logp = jnp.asarray(p.fields["logp"])
  ref, adv, stable = (jnp.asarray(x, jnp.float32) for x in row_of_the_table(name, p, credit, place))
  if kwargs is None:
    usual = jax.grad(lambda x: -jnp.sum(weight * adv * which(jnp.exp(x))))(logp)
  else:
    usual = np.asarray(problems.value_and_grad(method, fwd, batch, credit)[2])[place]
  term = lambda x: jnp.sum(weight * unified.estimator_term(x, ref, adv, stable))
  found = jax.grad(term)(logp)
  np.testing.assert_allclose(
    np.where(p.trained, found, 0), np.where(p.trained, usual, 0), rtol=1e-5, atol=1e-6
  )
  assert np.abs(usual).max() > 1e-2


# ---- the gate ------------------------------------------------------------------------------------


def only(p, which):
  p.alive &= which
  return p


def test_gate_1_is_sft_on_the_demonstrations():
  p = problem(3, dead=0)
  p.alive[1, -1] = True
  for mean_of, aggregate in (("prompts", "rollout_mean"), ("tokens", "token_mean")):
    method = problems.get("hpt_unified", max_tokens=9, gate=1.0, sft_mean=mean_of, beta_entropy=0.0)
    ours = problems.run(method, p)
    q = problem(3, dead=0)
    q.alive[1, -1] = True
    theirs = problems.run(problems.get("sft", aggregate=aggregate), only(q, q.given))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-6, atol=1e-9)


def test_a_negative_gate_is_dr_grpo_without_clip_times_the_number_of_samples():
  p = problem(3, dead=0, holes=0)
  ours = problems.run(problems.get("hpt_unified", max_tokens=9, gate=-1, beta_entropy=0.0), p)
  method = problems.get("dr_grpo", max_tokens=9, eps_low=1.0, eps_high=1e9)
  theirs = problems.run(method, only(problem(3, dead=0, holes=0), ~p.given))
  np.testing.assert_allclose(ours[0], 4 * theirs[0], rtol=1e-5)
  np.testing.assert_allclose(ours[2], 4 * theirs[2], rtol=1e-5, atol=1e-8)


def solved(counts, n):
  """A question for each count: so many of n samples are right; then a demonstration."""
  p = problems.ragged(0, n=len(counts), g=n + 1, t=4, dead=0, holes=0)
  p.given[:, -1] = True
  p.reward[:] = np.where(np.arange(n + 1) < np.asarray(counts)[:, None], 1.0, -1.0)
  return p


@pytest.mark.parametrize("n", [7, 8])
def test_the_switch_changes_with_exactly_the_number_solved(n):
  p = solved(range(n + 1), n)
  made, batch, *_ = problems.lay_out(p, "flat")
  for most in range(-1, n + 1):
    method = problems.get("hpt_unified", max_tokens=9, gate=most / n)
    credit = method.credit(method.init(1), made, batch)
    used = (np.asarray(credit.weight).sum(1) > 0).reshape(n + 1, n + 1)
    shown = np.arange(n + 1) <= most
    assert (used[:, -1] == shown).all() and (used[:, :-1] == ~shown[:, None]).all()


def test_a_kept_group_that_is_all_right_has_no_gradient_but_the_entropys():
  p = solved([4, 4], 4)
  for beta in (0.0, 1.0):
    method = problems.get("hpt_unified", max_tokens=9, beta_entropy=beta)
    loss, metrics, grad, *_ = problems.run(method, p)
    assert (grad == 0).all() and metrics["sft_share"] == 0
    rows = p.trained & ~p.given[..., None]
    np.testing.assert_allclose(loss, -beta * p.fields["entropy"][rows].mean(), rtol=1e-5)


def test_no_sample_alive_means_sft_and_no_demonstration_means_rl():
  method = problems.get("hpt_unified", max_tokens=9)
  p = solved([0, 0], 4)
  p.alive[0, :-1], p.alive[1, -1] = False, False
  p.reward[1] = [1, 0, 0, 0, 9]
  loss, metrics, grad, _, weight = problems.run(method, p)
  assert weight[0, -1].any() and not weight[0, :-1].any()
  assert weight[1, :-1].any() and not weight[1, -1].any()
  assert np.isfinite(loss) and metrics["sft_share"] == 0.5
  assert np.isfinite(grad).all()


def test_share_of_sft_is_that_of_questions():
  _, metrics, *_ = problems.run(problems.get("hpt_unified", max_tokens=9), solved([0, 1, 0, 2], 4))
  np.testing.assert_allclose(metrics["sft_share"], 0.5, rtol=1e-6)


def test_shuffled_decisions_keep_their_number_and_change_with_the_step():
  p = solved([0, 0, 3, 3, 3, 3], 4)
  method = problems.get("hpt_unified", max_tokens=9, shuffle=True)
  made, batch, *_ = problems.lay_out(p, "flat")
  found = []
  for step in range(6):
    weight = np.asarray(method.credit((), made.replace(step=jnp.int32(step)), batch).weight)
    found.append(weight.reshape(6, 5, -1)[:, -1].sum(-1) > 0)
  assert all(x.sum() == 2 for x in found) and len({x.tobytes() for x in found}) > 2
  with pytest.raises(UserError, match="rollouts.step is None; give the updates"):
    method.credit((), made.replace(step=None), batch)


def test_a_switch_is_sft_before_that_update_and_rl_from_it_on():
  p = problem(3, dead=0)
  made, batch, *_ = problems.lay_out(p, "flat")
  credit = lambda step, **kwargs: methods.get("hpt_unified", max_tokens=9, **kwargs).credit(
    (), made.replace(step=jnp.int32(step)), batch
  )
  for step, gate in ((0, 1.0), (3, 1.0), (4, -1.0), (9, -1.0)):
    jax.tree.map(np.testing.assert_array_equal, credit(step, switch=4), credit(step, gate=gate))


def test_bad_input_is_one_line():
  with pytest.raises(UserError, match="sft_mean: unknown name 'rows'; .*known: prompts, tokens"):
    methods.get("hpt_unified", max_tokens=9, sft_mean="rows")
  with pytest.raises(UserError, match="max_tokens=0: must be the token budget"):
    methods.get("hpt_unified", max_tokens=0)


# ---- rivals of the study -------------------------------------------------------------------------


def test_luffy_is_its_row_of_the_table_on_demonstrations_and_dr_grpo_on_samples():
  p = problem(3, dead=0.1)
  made, batch, fwd, place = problems.lay_out(p, "flat")
  method = rivals.luffy(9)
  credit = method.credit((), made, batch)
  grad = np.asarray(problems.value_and_grad(method, fwd, batch, credit)[2])[place]
  here, shape = rollouts(p), p.reward.shape
  expected = np.zeros(p.trained.shape)
  for i, j in here:
    adv = p.reward[i, j] - mean([p.reward[i, k] for k in range(shape[1]) if p.alive[i, k]])
    for t in steps(p, i, j):
      pi, old = (math.exp(p.fields[name][i, j, t]) for name in ("logp", "logp_old"))
      push = 0.1 * pi / (pi + 0.1) ** 2 if p.given[i, j] else pi / old
      expected[i, j, t] = -adv * push / (9 * len(here))
  assert np.abs(expected[p.given]).max() > 1e-4 < np.abs(expected[~p.given]).max()
  np.testing.assert_allclose(np.where(p.trained, grad, 0), expected, rtol=2e-5, atol=1e-8)


# ---- demonstrations beside samples ---------------------------------------------------------------


def host(n, g, t, seed, **more):
  """A plain numpy batch."""
  rng = np.random.default_rng(seed)
  length = rng.integers(1, t + 1, (n, g))
  small = {
    "prompt": np.arange(n, dtype=np.int32),
    "reward": rng.normal(size=(n, g)).astype(np.float32),
    "alive": rng.uniform(size=(n, g)) > 0.2,
    "correct": rng.uniform(size=(n, g)) > 0.5,
    "truncated": np.zeros((n, g), bool),
    "length": length.astype(np.int32),
  }
  rows = n * g
  mask = (np.arange(t) < length.reshape(-1, 1)).astype(np.float32)
  batch = Batch(
    tokens=rng.integers(1, 9, (rows, t)).astype(np.int32),
    mask=mask,
    unit=np.zeros((rows, t), np.int32),
    unit_mask=np.ones((rows, 1), np.float32),
    owner=np.arange(rows, dtype=np.int32)[:, None],
    **more,
  )
  return Rollouts(**small), batch


def test_a_demonstration_becomes_the_last_row_of_each_prompt_whatever_its_width():
  logp = np.full((6, 4), -0.5, np.float32)
  made, batch = host(3, 2, 4, 0, logp_sampler=logp)
  for width in (2, 7):
    shown, rows = host(3, 1, width, 1)
    both, joined = given_rows.append(made, batch, shown, rows)
    assert both.given.tolist() == [[False, False, True]] * 3
    assert joined.owner[:, 0].tolist() == list(range(9))
    for n in range(3):
      for g in range(3):
        source, r = (rows, n) if g == 2 else (batch, 2 * n + g)
        size = int(shown.length[n, 0] if g == 2 else made.length[n, g])
        assert joined.tokens[3 * n + g, :size].tolist() == source.tokens[r, :size].tolist()
        assert joined.mask[3 * n + g].sum() == size == both.length[n, g]
        unknown = np.isnan(joined.logp_sampler[3 * n + g, :size])
        assert unknown.all() if g == 2 else not unknown.any()
      assert both.reward[n, 2] == shown.reward[n, 0] and both.alive[n, 2] == shown.alive[n, 0]
