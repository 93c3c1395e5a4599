"""The decoder as a policy: log-probabilities, entropy, values and gradients of a batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from grpo_jax.models import policy
from grpo_jax.rollout.pack import pack, unpack

MODEL = tiny.FAMILIES["qwen2"]
PROMPT, LENGTH, TOKENS = tiny.problem(MODEL)
OWN = np.asarray([[4, 2, 1], [3, 0, 4], [4, 4, 2]])  # trained tokens; one completion is empty
MASK = np.arange(4) < OWN[..., None]
EOS = 7
TOKENS[0, 0, 3] = TOKENS[0, 1, 1] = TOKENS[1, 0, 2] = EOS  # the last trained token of three
TOKENS[0, 1, 0] = EOS  # a sampled id that equals the padding: trained, since lengths decide
TOKENS = np.where(MASK, TOKENS, EOS)
# Half the time to compile; these arrays are small.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def batch(tokens=TOKENS, prompt=PROMPT):
  return tiny.batch_of(prompt, LENGTH, tokens, MASK)


@functools.cache
def value_and_gradient(**options):
  """(Fwd, gradient) as a function of a weight [R, T] on logp and a batch, compiled once."""
  forward = policy.make_forward(MODEL, **options)

  def loss(params, weight, batch):
    fwd = forward(params, batch)
    return jnp.sum(weight * fwd.logp) + 0.1 * jnp.sum(weight * fwd.entropy), fwd

  return jit(jax.value_and_grad(loss, has_aux=True))


def run(weight, batch, **options):
  (_, fwd), grads = value_and_gradient(**options)(tiny.params_of(MODEL), weight, batch)
  return fwd, grads


def close(a, b, tolerance):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    size = max(np.abs(y).max(), 1e-3)
    np.testing.assert_allclose(x / size, y / size, rtol=0, atol=tolerance)


WEIGHT = np.random.default_rng(3).normal(size=(9, 4)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_logp_and_entropy_equal_numpy_and_are_zero_off_the_mask(temperature):
  forward = policy.make_forward(MODEL, temperature=temperature, chunk=5)
  fwd = jit(forward)(tiny.params_of(MODEL), batch())
  assert fwd.value is None
  logp, entropy = (np.asarray(a).reshape(3, 3, 4) for a in (fwd.logp, fwd.entropy))
  assert not logp[~MASK].any() and not entropy[~MASK].any()
  for n, g in np.ndindex(3, 3):
    text, own = PROMPT[n, : LENGTH[n]], TOKENS[n, g, : OWN[n, g]]
    if not len(own):
      continue
    table = tiny.naive_logp(MODEL, tiny.params_of(MODEL), text, own, temperature)
    found = logp[n, g, : len(own)]
    np.testing.assert_allclose(found, table[np.arange(len(own)), own], rtol=0, atol=2e-5)
    expected = -np.sum(np.exp(table) * table, axis=-1)
    np.testing.assert_allclose(entropy[n, g, : len(own)], expected, rtol=0, atol=2e-5)


def test_chunks_and_remat_change_neither_values_nor_gradients():
  expected = run(WEIGHT, batch(), chunk=0)
  close(run(WEIGHT, batch(), chunk=5, remat=True), expected, 1e-5)


def test_what_stands_off_the_mask_changes_no_bit():
  """Ids of padding, and weights there: a method's loss may leave anything on a masked token."""
  before = run(WEIGHT, batch(), chunk=5)
  tokens = np.where(MASK, TOKENS, 0)
  prompt = np.where(np.arange(8) < LENGTH[:, None], PROMPT, EOS)
  weight = np.where(MASK.reshape(9, 4), WEIGHT, 1e6).astype(np.float32)
  after = run(weight, batch(tokens, prompt), chunk=5)
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("row, column", [(0, 3), (1, 0), (1, 1), (3, 2)])
def test_stop_and_sampled_padding_ids_are_trained(row, column):
  """The gradient of their log-probability alone, along a direction, against a finite difference."""
  assert batch().tokens[row, column] == EOS and batch().mask[row, column] == 1
  weight = np.zeros((9, 4), np.float32)
  weight[row, column] = 1
  fwd, grads = run(weight, batch(), chunk=5)
  n, g = divmod(row, 3)
  text, own = PROMPT[n, : LENGTH[n]], TOKENS[n, g, : column + 1]
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), tiny.params_of(MODEL))

  def objective(params):
    table = tiny.naive_logp(MODEL, params, text, own)[column]
    return table[EOS] - 0.1 * np.sum(np.exp(table) * table)

  rng = np.random.default_rng(row)
  way = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
  step = 1e-6
  ends = (objective(jax.tree.map(lambda x, w, s=s: x + s * w, params, way)) for s in (step, -step))
  slope = np.subtract(*ends) / (2 * step)
  slopes = jax.tree.map(lambda x, w: np.sum(np.asarray(x, np.float64) * w), grads, way)
  found = sum(jax.tree.leaves(slopes))
  assert abs(slope) > 0.05
  np.testing.assert_allclose(found, slope, rtol=2e-4)


def test_a_packed_batch_gives_the_same_values_and_gradients():
  plain = jax.device_get(batch())
  rows = jax.tree.map(np.asarray, pack(plain, OWN, lambda size: size + 2))
  assert rows.tokens.shape == (3, OWN.sum(1).max() + 2)
  place = dataclasses.replace(plain, logp_sampler=WEIGHT)
  weight = pack(place, OWN, lambda size: size + 2).logp_sampler
  fwd, grads = run(WEIGHT, plain, chunk=5)
  packed_fwd, packed_grads = run(weight, rows, chunk=5)
  close(packed_grads, grads, 1e-5)
  for a, b in ((packed_fwd.logp, fwd.logp), (packed_fwd.entropy, fwd.entropy)):
    found = unpack(np.asarray(a), OWN, 4).reshape(9, 4)
    np.testing.assert_allclose(found, b, rtol=0, atol=1e-5)
    assert not np.asarray(a)[rows.mask == 0].any()


def test_a_value_head_starts_at_zero_and_reads_the_state_before_the_token():
  params = dict(tiny.params_of(MODEL)) | {"value": policy.init_value_head(MODEL)}
  forward = jit(policy.make_forward(MODEL))
  assert not np.asarray(forward(params, batch()).value).any()
  rng = np.random.default_rng(0)
  params["value"] = {"w": rng.normal(size=16).astype(np.float32), "b": np.float32(0.3)}
  before = np.asarray(forward(params, batch()).value)
  assert not before[~MASK.reshape(9, 4)].any() and np.ptp(before) > 1
  changed = TOKENS.copy()
  changed[..., 1] = (changed[..., 1] + 1) % MODEL.vocab_size
  after = np.asarray(forward(params, batch(changed)).value)
  np.testing.assert_array_equal(before[:, :2], after[:, :2])
  assert np.abs(before - after)[0, 2:].max() > 1e-2
  # The value of the first token is that of the prompt, the same for the whole group.
  np.testing.assert_array_equal(before[0, 0], before[1, 0])


def test_a_batch_without_a_trained_token_gives_zeros_and_no_nan():
  empty = batch().replace(mask=jnp.zeros((9, 4)))
  fwd, grads = run(WEIGHT, empty, chunk=5)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves((fwd, grads)))


def test_half_precision_parameters_give_float32_log_probabilities():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params_of(MODEL))
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  forward = jit(policy.make_forward(MODEL))
  narrow, expected = forward(params, batch()), forward(wide, batch())
  assert narrow.logp.dtype == narrow.entropy.dtype == jnp.float32
  assert np.mean(np.abs(narrow.logp - expected.logp)) < 0.1
