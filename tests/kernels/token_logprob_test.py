"""Log-probability and entropy from hidden states: numpy in float64, and memory by the compiler."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wide import wide

from pallas_kernels import token_logprob as kernel

X, D, V = 37, 8, 53


def draw(seed, scale=1.0, x=X):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(x, D)) * scale, rng.normal(size=(V, D)), rng.integers(0, V, x)


def oracle(hidden, head, target, temperature):
  z = hidden @ head.T / temperature
  z = z - z.max(axis=-1, keepdims=True)
  logp = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
  return logp[np.arange(len(z)), target], -(np.exp(logp) * logp).sum(axis=-1)


def oracle_gradient(hidden, head, target, temperature, a, b):
  """Of sum(a * logp + b * entropy): d logp / dz = onehot - p, d entropy / dz = -p (log p + H)."""
  z = hidden @ head.T / temperature
  p = np.exp(z - z.max(axis=-1, keepdims=True))
  p /= p.sum(axis=-1, keepdims=True)
  entropy = -(p * np.log(p)).sum(axis=-1, keepdims=True)
  dz = a[:, None] * (np.eye(V)[target] - p) - b[:, None] * p * (np.log(p) + entropy)
  return dz @ head / temperature, dz.T @ hidden / temperature


@pytest.mark.parametrize("chunk", [0, 1, 16, 37, 64])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**20), temperature=st.sampled_from([0.3, 1.0, 1.7]))
def test_values_equal_numpy_float64_for_any_chunk_and_temperature(chunk, seed, temperature):
  hidden, head, target = draw(seed)
  f32 = (np.asarray(a, np.float32) for a in (hidden, head))
  out = kernel.token_logprob(*f32, target.astype(np.int32), np.float32(temperature), chunk=chunk)
  logp, entropy = oracle(hidden, head, target, temperature)
  assert out.logp.dtype == out.entropy.dtype == jnp.float32
  np.testing.assert_allclose(out.logp, logp, rtol=2e-6, atol=5e-6)
  np.testing.assert_allclose(out.entropy, entropy, rtol=2e-6, atol=5e-6)


def gradient(f, hidden, head, target, temperature, a, b):
  def total(hidden, head):
    logp, entropy, _ = f(hidden, head, target, temperature)
    return jnp.sum(a * logp + b * entropy)

  return jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, head)


FORMS = {
  **{f"chunk {c}": functools.partial(kernel.token_logprob, chunk=c) for c in (0, 16, 64)},
  "strided": functools.partial(kernel.token_logprob, chunk=16, strided=True),
  "reference": kernel.reference,
}


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_logp_and_entropy_equal_numpy_float64(form):
  hidden, head, target = draw(1)
  a, b = np.random.default_rng(2).normal(size=(2, X))
  for temperature in (0.7, 1.0):
    expected = oracle_gradient(hidden, head, target, temperature, a, b)
    with wide():
      found = gradient(FORMS[form], hidden, head, target, temperature, a, b)
      for name, x, y in zip(("hidden", "head"), found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12, err_msg=name)
    f32 = (jnp.asarray(z, jnp.float32) for z in (hidden, head))
    weights = (jnp.asarray(z, jnp.float32) for z in (a, b))
    found = gradient(FORMS[form], *f32, jnp.asarray(target, jnp.int32), temperature, *weights)
    for name, x, y in zip(("hidden", "head"), found, expected, strict=True):
      np.testing.assert_allclose(x, y, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_log_z_and_its_gradient_equal_numpy_float64(form):
  hidden, head, target = draw(6)
  z = hidden @ head.T / 0.7
  expected = np.log(np.exp(z).sum(axis=-1))
  weight = np.random.default_rng(7).normal(size=X)
  dz = weight[:, None] * np.exp(z - expected[:, None])

  def total(hidden, head):
    lse = FORMS[form](hidden, head, target, 0.7)[2]
    return jnp.sum(weight * lse), lse

  with wide():
    found, lse = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(hidden, head)
    np.testing.assert_allclose(lse, expected, rtol=0, atol=1e-12)
    for a, b in zip(found, (dz @ head / 0.7, dz.T @ hidden / 0.7), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_the_temperature_is_a_constant_for_gradients():
  hidden, head, target = (jnp.asarray(a) for a in draw(8))
  args = hidden.astype(jnp.float32), head.astype(jnp.float32), target.astype(jnp.int32)
  total = lambda t: sum(map(jnp.sum, kernel.token_logprob(*args, t)))
  assert jax.grad(total)(jnp.float32(0.7)) == 0


def test_a_zero_weight_gives_a_zero_gradient_row():
  hidden, head, target = draw(3)
  weight = np.zeros(X, np.float32)
  weight[5] = 1
  f32 = (jnp.asarray(z, jnp.float32) for z in (hidden, head))
  form = FORMS["chunk 16"]
  found, _ = gradient(form, *f32, jnp.asarray(target, jnp.int32), 1.0, weight, 0 * weight)
  assert np.abs(found[5]).max() > 0.01
  assert not np.delete(found, 5, axis=0).any()


def test_extreme_logits_give_finite_exact_values_and_gradients():
  """Logits of +-1e4: one token has all the mass, some have none."""
  z = np.zeros((4, V))
  z[0, 3] = 1e4
  z[1] = -1e4
  z[2, :2] = 1e4
  z[3] = np.linspace(-1e4, 1e4, V)
  target = np.asarray([4, 0, 1, V - 1])
  logp, entropy = oracle(z, np.eye(V), target, 1.0)
  eye = jnp.eye(V)
  for chunk in (0, 3):
    form = functools.partial(kernel.token_logprob, chunk=chunk)
    args = jnp.asarray(z, jnp.float32), eye, jnp.asarray(target, jnp.int32)
    out = form(*args)
    np.testing.assert_allclose(out.logp, logp, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out.entropy, entropy, rtol=1e-6, atol=1e-6)
    ones = jnp.ones(4)
    found = gradient(form, *args, 1.0, ones, ones)
    assert all(np.isfinite(g).all() for g in found)
    np.testing.assert_allclose(found[0][0], np.eye(V)[4] - np.eye(V)[3], atol=1e-6)


def test_entropy_of_equal_logits_is_log_v_and_of_a_certain_token_zero():
  target = jnp.zeros(2, jnp.int32)
  z = jnp.zeros((2, V)).at[1, 0].set(200.0)
  out = kernel.from_logits(z, target)
  np.testing.assert_allclose(out.entropy, [np.log(V), 0.0], rtol=1e-6)
  np.testing.assert_allclose(out.logp, [-np.log(V), 0.0], rtol=1e-6)


def test_from_logits_is_what_the_whole_form_computes():
  """The sampler calls one, the trainer the other: they may not drift apart."""
  hidden, head, target = draw(4)
  hidden, head = (jnp.asarray(z, jnp.float32) for z in (hidden, head))
  target = jnp.asarray(target, jnp.int32)
  for temperature in (0.7, 1.3):
    parts = kernel.from_logits(hidden @ head.T / temperature, target)
    for chunk in (0, 16):
      whole = kernel.token_logprob(hidden, head, target, temperature, chunk=chunk)
      for a, b in zip(parts, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_half_precision_inputs_are_summed_in_float32():
  """The same rounded inputs in float64; logits kept in bfloat16 would be off by 1e-2."""
  hidden, head, target = draw(5, scale=3)
  hidden, head = (jnp.asarray(z, jnp.bfloat16) for z in (hidden, head))
  rounded = (np.asarray(z, np.float64) for z in (hidden, head))
  logp, entropy = oracle(*rounded, target, 1.0)
  for chunk in (0, 16):
    out = kernel.token_logprob(hidden, head, jnp.asarray(target, jnp.int32), chunk=chunk)
    assert out.logp.dtype == jnp.float32
    np.testing.assert_allclose(out.logp, logp, rtol=0, atol=2e-5)
    np.testing.assert_allclose(out.entropy, entropy, rtol=0, atol=2e-5)


# ---- memory -------------------------------------------------------------------------------------


def temporary_bytes(x, chunk, v=8192, d=32):
  def total(hidden, head, target):
    out = kernel.token_logprob(hidden, head, target, chunk=chunk)
    return jnp.sum(out.logp) + jnp.sum(out.entropy)

  shapes = (
    jax.ShapeDtypeStruct((x, d), jnp.float32),
    jax.ShapeDtypeStruct((v, d), jnp.float32),
    jax.ShapeDtypeStruct((x,), jnp.int32),
  )
  compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*shapes).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_value_and_gradient_is_flat_in_the_number_of_tokens():
  """X tokens may cost a few more [X, D] arrays, as inputs and outputs do, but no [X, V]."""
  v, d, chunk = 8192, 32, 64
  sizes = 512, 1024, 2048, 4096
  used = [temporary_bytes(x, chunk, v, d) for x in sizes]
  for (x, before), (y, after) in itertools.pairwise(zip(sizes, used, strict=True)):
    assert after - before <= 4 * (y - x) * (3 * d + 8), (sizes, used)
  assert used[-1] < sizes[-1] * v * 4 / 20
  assert temporary_bytes(sizes[-1], 0, v, d) > sizes[-1] * v * 4  # what it is compared with
