"""Ratio losses: signs, clips, stop-gradients and the clamp."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core import divergences, preference, surrogates, unified
from grpo_jax.errors import UserError
from grpo_jax.types import Credit, Fwd

quick = settings(max_examples=200, deadline=None)
BOUNDS = {"eps_low": 0.2, "eps_high": 0.3}


def row(*values):
  return jnp.asarray([values], jnp.float32)


def batch_of(mask, logp_old=None, logp_ref=None):
  return types.SimpleNamespace(
    mask=mask,
    unit=jnp.zeros(mask.shape, jnp.int32),
    unit_mask=jnp.ones((mask.shape[0], 1)),
    owner=jnp.arange(mask.shape[0], dtype=jnp.int32)[:, None],
    logp_old=logp_old,
    logp_ref=logp_ref,
  )


def slope(f, x):
  return np.asarray(jax.grad(lambda x: jnp.sum(f(x)))(x))


def test_trap_06_without_old_log_probabilities_the_ratio_is_one_and_the_gradient_is_of_logp():
  logp, adv, mask = row(-1.0, -2.0, -30.0), row(2.0, -3.0, 1.0), row(1.0, 1.0, 1.0)
  batch = batch_of(mask)
  term = lambda logp: surrogates.clipped(
    surrogates.log_ratio(Fwd(logp=logp), batch), adv, eps_low=0.0, eps_high=0.0
  )
  np.testing.assert_array_equal(term(logp), -adv)
  term = lambda logp: surrogates.clipped(surrogates.log_ratio(Fwd(logp=logp), batch), adv, **BOUNDS)
  np.testing.assert_array_equal(slope(term, logp), -adv)
  same = batch_of(mask, logp_old=logp)
  ratio = surrogates.log_ratio(Fwd(logp=logp), same)
  np.testing.assert_array_equal(ratio, 0)


def test_trap_06_no_gradient_reaches_the_old_log_probabilities():
  logp, mask = row(-1.0, -2.0), row(1.0, 1.0)
  f = lambda old: surrogates.ratio_of(surrogates.log_ratio(Fwd(logp=logp), batch_of(mask, old)))
  assert (slope(f, logp) == 0).all()


@quick
@given(
  d=st.floats(-3, 3),
  a=st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]),
  dual=st.sampled_from([None, 1.5, 3.0]),
)
def test_trap_07_the_clip_is_ppo_for_both_signs_with_the_dual_bound_for_negative_ones(d, a, dual):
  r = np.exp(np.float64(np.float32(d)))
  expected = -min(r * a, np.clip(r, 0.8, 1.3) * a)
  if dual is not None and a < 0:
    expected = -max(min(r * a, np.clip(r, 0.8, 1.3) * a), dual * a)
  f = lambda x: surrogates.clipped(x, row(a), dual_clip=dual, **BOUNDS)
  np.testing.assert_allclose(f(row(d)), [[expected]], rtol=2e-6, atol=1e-7)
  stopped = (a > 0 and r > 1.3) or (a < 0 and (r < 0.8 or (dual is not None and r > dual)))
  if min(abs(r - b) for b in (0.8, 1.3, dual or 1.3)) > 1e-4:
    expected = 0.0 if stopped else -a * r
    np.testing.assert_allclose(slope(f, row(d)), [[expected]], rtol=2e-6, atol=1e-7)


def test_trap_07_a_negative_advantage_keeps_its_gradient_however_large_the_ratio():
  f = lambda x: surrogates.clipped(x, row(-1.0), **BOUNDS)
  np.testing.assert_allclose(slope(f, row(2.0)), [[np.exp(2.0)]], rtol=1e-6)


def test_trap_08_cispo_pushes_unlikely_tokens_in_the_direction_of_the_advantage():
  logp = row(-0.1, -1.5, -8.0)
  batch = batch_of(jnp.ones((1, 3)), logp_old=logp - row(0.0, 3.0, -3.0))

  def f(x):
    d = surrogates.log_ratio(Fwd(logp=x), batch)
    return surrogates.cispo(d, x, row(1.0, 1.0, 1.0), batch, eps_high=4.0)

  expected = -np.minimum(np.exp([[0.0, 3.0, -3.0]]), 5.0)  # without sg: -r (1 + logp), sign flips
  np.testing.assert_allclose(slope(f, logp), expected, rtol=1e-5)


def test_trap_09_gspo_has_one_ratio_a_sequence_and_both_forms_have_one_gradient():
  old = row(-1.0, -2.0, -0.5, -4.0)
  logp = old + row(0.3, -0.1, 0.5, 9.0)
  batch = batch_of(row(1.0, 1.0, 1.0, 0.0), logp_old=old)
  s = np.exp((0.3 - 0.1 + 0.5) / 3)
  gradients = []
  for form in (surrogates.sequence_log_ratio, surrogates.token_form):

    def f(x, form=form):
      d = form(surrogates.log_ratio(Fwd(logp=x), batch), batch)
      return batch.mask / 3 * surrogates.clipped(d, 2.0 * batch.mask, eps_low=0.5, eps_high=0.5)

    np.testing.assert_allclose(jnp.sum(f(logp)), -2 * s, rtol=1e-6)
    gradients.append(slope(f, logp))
  np.testing.assert_allclose(gradients[0], [[-2 * s / 3] * 3 + [0]], rtol=1e-5)
  np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-5)


def test_trap_20_log_ratios_are_held_within_20_and_the_share_beyond_is_counted():
  d = row(25.0, -25.0, 19.0, 1000.0)
  ratio = surrogates.ratio_of(d)
  np.testing.assert_allclose(ratio, np.exp([[20.0, -20.0, 19.0, 20.0]]), rtol=1e-5)
  assert (slope(surrogates.ratio_of, d)[0, [0, 1, 3]] == 0).all()
  credit = Credit(adv=jnp.ones((1, 1)), weight=row(0.25, 0.25, 0.5, 0.0))
  metrics = surrogates.metrics(d, row(1.0, -1.0, 1.0, 1.0), credit, **BOUNDS)
  assert metrics["log_ratio_clamped"] == 0.5
  assert metrics["clip_high"] == 0.75 and metrics["clip_low"] == 0.25 and metrics["weight"] == 1
  np.testing.assert_allclose(metrics["max_ratio"], np.exp(20.0), rtol=1e-5)


def test_trap_20_the_exponent_of_k3_is_clamped_and_its_linear_part_is_not():
  np.testing.assert_allclose(divergences.k3(row(-100.0)), [[np.exp(20.0) - 101]], rtol=1e-5)
  np.testing.assert_allclose(divergences.k3(row(100.0)), [[99.0]], rtol=1e-5)


def test_trap_23_clip_shares_are_told_apart_by_side_and_sign_of_the_advantage():
  d = jnp.log(row(0.5, 0.5, 2.0, 2.0))
  low, high = surrogates.clip_sides(d, row(1.0, -1.0, 1.0, -1.0), **BOUNDS)
  np.testing.assert_array_equal(low, [[False, True, False, False]])
  np.testing.assert_array_equal(high, [[False, False, True, False]])
  credit = Credit(adv=jnp.ones((1, 1)), weight=row(0.1, 0.2, 0.3, 0.4))
  bounded = surrogates.bound_metrics(d, credit, eps_low=None, eps_high=0.3)
  assert bounded["clip_low"] == 0
  np.testing.assert_allclose(bounded["clip_high"], 0.7, rtol=1e-6)


@pytest.mark.parametrize("name", divergences.ESTIMATORS)
def test_straight_through_estimators_keep_their_value_and_take_the_gradient_of_k2(name):
  logp, ref = row(-1.0, -2.0, -3.0), row(-1.5, -1.0, -3.0)
  batch = batch_of(row(1.0, 1.0, 0.0), logp_old=logp, logp_ref=ref)
  x = np.asarray(logp - ref)
  f = lambda y: divergences.kl(Fwd(logp=y), batch, name, surrogates.log_ratio(Fwd(logp=y), batch))
  value = {"k1": x, "k2": x**2 / 2}.get(name.rstrip("+"), np.exp(-x) - 1 + x)
  slopes = {"k1": 1 + 0 * x, "k3": 1 - np.exp(-x), "rk3": x}  # rk3 at ratio 1: k3 + k3' = x
  np.testing.assert_allclose(f(logp), value * batch.mask, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(slope(f, logp), slopes.get(name, x) * batch.mask, rtol=1e-5, atol=1e-6)


def test_a_kl_term_says_what_it_lacks():
  logp = row(-1.0)
  batch = batch_of(row(1.0))
  with pytest.raises(UserError, match="batch.logp_ref is missing"):
    divergences.kl(Fwd(logp=logp), batch, "k3")
  with pytest.raises(UserError, match="^kl: unknown name .k4.; known: k1, k1"):
    divergences.kl(Fwd(logp=logp), batch, "k4")


def test_the_estimator_term_has_the_gradient_it_states():
  logp, ref = row(-1.0, -2.0), row(-1.5, -1.0)
  adv, stable = row(2.0, -3.0), row(1.0, 0.0)
  grads = jax.grad(lambda *a: jnp.sum(unified.estimator_term(*a)), argnums=(0, 1, 2, 3))(
    logp, ref, adv, stable
  )
  np.testing.assert_allclose(grads[0], [[-2 * np.exp(0.5), 0.0]], rtol=1e-6)
  assert all((g == 0).all() for g in grads[1:])


def test_pair_losses_equal_their_formulas_and_label_smoothing_mixes_both_sides():
  h = np.linspace(-4, 4, 9)
  nll = lambda z: np.log1p(np.exp(-z))
  x = jnp.asarray(h, jnp.float32)
  np.testing.assert_allclose(preference.pair_loss(x, beta=0.5), nll(0.5 * h), rtol=1e-5)
  np.testing.assert_allclose(
    preference.pair_loss(x, beta=0.5, label_smoothing=0.2),
    0.8 * nll(0.5 * h) + 0.2 * nll(-0.5 * h),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    preference.pair_loss(x, beta=0.5, kind="ipo"), (h - 1) ** 2, rtol=1e-5, atol=1e-6
  )


def test_a_pair_loss_refuses_groups_that_are_not_pairs():
  rollouts = types.SimpleNamespace(reward=jnp.zeros((2, 3)))
  with pytest.raises(UserError, match="needs 2 completions a prompt, not 3"):
    preference.usable_pairs(batch_of(jnp.ones((6, 1))), rollouts)
