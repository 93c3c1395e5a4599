"""Exact expectations on a policy that can be enumerated: 5 tokens, length 2, a softmax table.

Every estimator's gradient, averaged exactly over all groups that can be drawn, against the exact
gradient of what it claims to estimate. float64 throughout.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from cases import CASES, label

from grpo_jax import methods
from grpo_jax.core import divergences
from grpo_jax.types import Fwd, Rollouts, rows_of

A = 5
SEQUENCES = np.array(list(itertools.product(range(A), range(A))))  # every [25, 2]
PAIRS = np.array(list(itertools.product(range(25), range(25))))  # all groups of 2


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def world():
  """(theta, other theta, rewards of the 25); theta: [1 + A, A] logits, row 0 the first token."""
  rng = np.random.default_rng(0)
  return rng.normal(size=(1 + A, A)), rng.normal(size=(1 + A, A)), rng.normal(size=25)


def logps(theta, tokens):
  """[..., 2] log-probabilities of the tokens of sequences [..., 2]."""
  tokens = jnp.asarray(tokens)
  table = jax.nn.log_softmax(jnp.asarray(theta), axis=1)
  return jnp.stack([table[0, tokens[..., 0]], table[1 + tokens[..., 0], tokens[..., 1]]], axis=-1)


def probability(theta):
  return jnp.exp(logps(theta, SEQUENCES).sum(-1))  # [25]


def true_gradient(theta, reward):
  return jax.grad(lambda th: jnp.sum(probability(th) * reward))(theta)


def expected_gradient(method, theta, reward, state_value=None, reference=None, old=None):
  """Sum over all groups of 2 of their probability times the gradient of the loss."""

  def of_group(pair):
    rollouts = Rollouts(
      prompt=jnp.zeros(1, jnp.int32),
      reward=jnp.asarray(reward)[pair][None],
      alive=jnp.ones((1, 2), bool),
      correct=jnp.ones((1, 2), bool),
      truncated=jnp.zeros((1, 2), bool),
      length=jnp.full((1, 2), 2, jnp.int32),
    )
    tokens = jnp.asarray(SEQUENCES)[pair]
    value = None
    if state_value is not None:
      value = jnp.stack([jnp.full(2, state_value[0]), state_value[1 + tokens[:, 0]]], axis=1)
    batch = rows_of(
      rollouts,
      tokens.astype(jnp.int32),
      jnp.ones((2, 2)),
      logp_ref=None if reference is None else logps(reference, tokens),
      logp_old=None if old is None else logps(old, tokens),
      entropy_old=jnp.zeros(tokens.shape),
      extra={} if value is None else {"value": value},
    )
    batch = batch.replace(
      mask=batch.mask.astype(jnp.float64), unit_mask=batch.unit_mask.astype(jnp.float64)
    )

    def loss(th):
      credit = method.credit(method.init(1), rollouts, batch)
      return method.loss(Fwd(logp=logps(th, tokens), value=value), batch, credit)[0]

    return jax.grad(loss)(theta)

  p = probability(theta if old is None else old)
  grads = jax.jit(jax.vmap(of_group))(jnp.asarray(PAIRS))
  return jnp.einsum("k,kij->ij", p[PAIRS[:, 0]] * p[PAIRS[:, 1]], grads)


@pytest.mark.parametrize(
  ("name", "kwargs", "factor"),
  [
    ("reinforce", {"baseline": "none"}, 1.0),
    ("reinforce", {"baseline": "batch"}, 1 - 1 / 2),  # the baseline holds the own reward: 1 - 1/G
    ("rloo", {}, 1.0),
    ("dr_grpo", {"max_tokens": 7}, (1 - 1 / 2) / 7),
    ("grpo", {"scale": "none"}, (1 - 1 / 2) / 2),  # both sequences have 2 tokens
    ("grpo", {"scale": "none", "aggregate": "token_mean"}, (1 - 1 / 2) / 2),
    ("spo_single_stream", {"whiten": False}, 1 / 2),  # the tracker knows nothing of these rewards
    ("hpt_unified", {"max_tokens": 7, "beta_entropy": 0.0}, 2 * (1 - 1 / 2) / 7),  # sums over G
    ("gtpo", {"gamma": 0.0, "conflicts": False}, (1 - 1 / 2) / 2),
    ("kimi_k1_5", {"length_weight": 0.0}, 1 - 1 / 2),
  ],
)
def test_expected_gradient_is_the_exact_gradient_of_the_expected_reward(
  world, name, kwargs, factor
):
  theta, _, reward = world
  found = expected_gradient(methods.get(name, **kwargs), theta, reward)
  np.testing.assert_allclose(found, -factor * true_gradient(theta, reward), rtol=1e-9, atol=1e-12)


def exact_values(theta, reward):
  """[1 + A] value of the empty prefix and of each first token."""
  p = np.exp(np.asarray(jax.nn.log_softmax(theta, axis=1)))
  after = (p[1:] * reward.reshape(A, A)).sum(1)
  return np.concatenate([[p[0] @ after], after])


@pytest.mark.parametrize(("lam", "exact"), [(1.0, False), (1.0, True), (0.6, True), (0.0, True)])
def test_ppo_is_unbiased_with_any_values_at_lambda_1_and_with_exact_values_at_any_lambda(
  world, lam, exact
):
  theta, _, reward = world
  values = exact_values(theta, reward) if exact else np.random.default_rng(1).normal(size=1 + A)
  method = methods.get("ppo", lam=lam, whiten=False, value_coef=0.0)
  found = expected_gradient(method, theta, reward, state_value=jnp.asarray(values))
  np.testing.assert_allclose(found, -true_gradient(theta, reward) / 2, rtol=1e-9, atol=1e-12)


def test_ppo_is_biased_with_wrong_values_below_lambda_1(world):
  theta, _, reward = world
  values = jnp.asarray(np.random.default_rng(1).normal(size=1 + A))
  method = methods.get("ppo", lam=0.5, whiten=False, value_coef=0.0)
  found = expected_gradient(method, theta, reward, state_value=values)
  assert np.abs(found + true_gradient(theta, reward) / 2).max() > 0.01


def per_state_kl(theta, visiting, reference, reverse):
  """sum_s d(s) KL at state s, d the fixed visits of the policy `visiting`."""
  p, q = jax.nn.log_softmax(theta, axis=1), jax.nn.log_softmax(reference, axis=1)
  if not reverse:
    p, q = q, p
  visits = jnp.concatenate([jnp.ones(1), jnp.exp(jax.nn.log_softmax(visiting, axis=1))[0]])
  return jnp.sum(visits * jnp.sum(jnp.exp(p) * (p - q), axis=1))


def kl_gradient(world, estimator, old=None):
  """Expected gradient of the KL term alone: equal rewards, so the policy term is exactly 0."""
  theta, reference, _ = world
  method = methods.get("grpo", beta_kl=1.0, kl=estimator, aggregate="rollout_sum")
  return expected_gradient(method, theta, np.full(25, 0.7), reference=reference, old=old)


def test_trap_10_k1_in_the_loss_has_no_gradient_in_expectation(world):
  np.testing.assert_allclose(kl_gradient(world, "k1"), 0, atol=1e-12)


@pytest.mark.parametrize("estimator", ["k2", "k1+", "k3+", "rk3"])
def test_trap_10_k2_straight_through_and_rk3_have_the_gradient_of_the_reverse_kl(world, estimator):
  theta, reference, _ = world
  true = jax.grad(lambda th: per_state_kl(th, theta, reference, reverse=True))(theta)
  np.testing.assert_allclose(kl_gradient(world, estimator), true, rtol=1e-9, atol=1e-12)
  assert np.abs(true).max() > 0.1


def test_trap_10_k3_in_the_loss_has_the_gradient_of_the_forward_kl(world):
  theta, reference, _ = world
  forward, reverse = (
    jax.grad(lambda th: per_state_kl(th, theta, reference, reverse=r))(theta)  # noqa: B023
    for r in (False, True)
  )
  np.testing.assert_allclose(kl_gradient(world, "k3"), forward, rtol=1e-9, atol=1e-12)
  assert np.abs(forward - reverse).max() > 0.01


def test_rk3_keeps_the_gradient_of_the_reverse_kl_when_the_samples_are_old(world):
  theta, reference, _ = world
  old = theta + 0.3 * np.random.default_rng(2).normal(size=theta.shape)
  true = jax.grad(lambda th: per_state_kl(th, old, reference, reverse=True))(theta)
  np.testing.assert_allclose(kl_gradient(world, "rk3", old=old), true, rtol=1e-9, atol=1e-12)
  assert np.abs(kl_gradient(world, "k2", old=old) - true).max() > 0.01


def test_k1_and_k3_have_the_kl_as_mean_value_and_k2_has_not(world):
  theta, reference, _ = world
  p = probability(theta)
  x = (logps(theta, SEQUENCES) - logps(reference, SEQUENCES)).sum(-1)
  true = float(jnp.sum(p * x))
  for k, exact in ((divergences.k1, True), (divergences.k3, True), (divergences.k2, False)):
    assert (abs(float(jnp.sum(p * k(x))) - true) < 1e-12) == exact


def test_rloo_with_the_kl_in_the_reward_has_the_gradient_of_the_kl_of_whole_sequences(world):
  theta, reference, reward = world
  method = methods.get("rloo", beta_kl=0.3)
  found = expected_gradient(method, theta, reward, reference=reference, old=theta)

  def objective(th):
    x = (logps(th, SEQUENCES) - logps(reference, SEQUENCES)).sum(-1)
    return jnp.sum(probability(th) * (reward - 0.3 * x))

  np.testing.assert_allclose(found, -jax.grad(objective)(theta), rtol=1e-9, atol=1e-12)


def test_sft_on_samples_of_a_teacher_has_the_gradient_of_the_cross_entropy(world):
  theta, teacher, _ = world
  found = expected_gradient(methods.get("sft"), theta, np.zeros(25), old=teacher)
  loss = lambda th: -jnp.sum(probability(teacher) * logps(th, SEQUENCES).sum(-1)) / 2
  np.testing.assert_allclose(found, jax.grad(loss)(theta), rtol=1e-9, atol=1e-12)


def without_stop_gradient(case):
  by_token = case.kwargs.get("form") == "token" or case.kwargs.get("ratio") == "sequence"
  return case.name not in ("cispo", "gtpo") and not by_token


@pytest.mark.parametrize("case", [c for c in CASES if without_stop_gradient(c)], ids=label)
def test_gradient_equals_finite_differences_in_float64(case):
  method, p = case.make(), problems.ragged(1, n=2, g=2, t=3, dtype=np.float64, dead=0)
  rollouts, batch, fwd, _ = problems.lay_out(p, "flat", method.needs)
  credit = method.credit(method.init(2), rollouts, batch)
  _, _, *grads = problems.value_and_grad(method, fwd, batch, credit)
  f = jax.jit(
    lambda logp, value: method.loss(fwd.replace(logp=logp, value=value), batch, credit)[0]
  )
  at, h = [fwd.logp, fwd.value], 1e-6
  for i, grad in enumerate(grads):
    if grad is None:
      continue
    for r, t in np.ndindex(*fwd.logp.shape):
      up, down = list(at), list(at)
      up[i], down[i] = at[i].at[r, t].add(h), at[i].at[r, t].add(-h)
      np.testing.assert_allclose((f(*up) - f(*down)) / (2 * h), grad[r, t], rtol=1e-6, atol=1e-8)
