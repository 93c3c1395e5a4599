"""The shared-prompt decoder: equal to repeated rows, to numpy, and as cheap as the formula says."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
from wide import wide

from grpo_jax.models import decoder
from grpo_jax.models.config import ModelConfig, RopeScaling

families = pytest.mark.parametrize("family", tiny.FAMILIES)
# Half the time to compile; these arrays are small.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LLAMA = tiny.FAMILIES["llama"]
TRUNK = np.asarray([3, 1, 30], np.int32)


def repeated(prompt, length, tokens, trunk=()):
  """G rows a prompt [trunk; prompt; completion] without gaps, padded with random ids."""
  n, g, t = tokens.shape
  width = len(trunk) + prompt.shape[1] + t
  rows = np.random.default_rng(9).integers(0, 37, (n * g, width)).astype(np.int32)
  first = np.repeat(len(trunk) + length, g).astype(np.int32)
  for r, row in enumerate(rows):
    text = np.concatenate([trunk, prompt[r // g, : length[r // g]], tokens[r // g, r % g]])
    row[: len(text)] = text
  return rows, first


def packed(tokens, length):
  """Completions of `length` [N, G] tokens one after the other: ids, position, segment [N, X]."""
  n, g, t = tokens.shape
  ids, position, segment = np.zeros((3, n, g * t), np.int32)
  segment -= 1
  for i in range(n):
    at = 0
    for j in range(g):
      where = slice(at, at := at + length[i, j])
      ids[i, where], position[i, where] = tokens[i, j, : length[i, j]], np.arange(length[i, j])
      segment[i, where] = j
  return ids, position, segment


def project(params, x):
  return jnp.einsum("...d,vd->...v", x, decoder.output_matrix(params))


def shared_logits(config, params, prompt, length, tokens, **options):
  return project(params, decoder.shared_hidden(config, params, prompt, length, tokens, **options))


def repeated_logits(config, params, rows, first, t):
  """Logits [N * G, T, V] that predict the completions."""
  x = decoder.hidden(config, params, rows, first + t)
  at = (first - 1)[:, None] + jnp.arange(t)[None]
  return project(params, jnp.take_along_axis(x, at[..., None], axis=1))


def loss_of(logits, tokens, weight):
  logp = jax.nn.log_softmax(logits, axis=-1)
  picked = jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
  return jnp.sum(weight * picked)


# ---- against numpy ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "family, trunk", [("llama", TRUNK), ("tied", None), ("qwen2", None), ("qwen3", TRUNK)]
)
def test_shared_prompt_logp_equals_numpy_one_row_at_a_time(family, trunk):
  """Ragged prompts, the shortest of one token; so positions restart at the prompt's length."""
  config = tiny.FAMILIES[family]
  prompt, length, tokens = tiny.problem(config)
  params = tiny.params_of(config)
  f = jit(functools.partial(shared_logits, config, trunk=trunk))
  logits = f(params, prompt, length, tokens)
  found = tiny.log_softmax(np.asarray(logits, np.float64))
  start = [] if trunk is None else trunk
  for n, g in np.ndindex(tokens.shape[:2]):
    text = np.concatenate([start, prompt[n, : length[n]]]).astype(int)
    expected = tiny.naive_logp(config, params, text, tokens[n, g])
    np.testing.assert_allclose(found[n, g], expected, rtol=0, atol=2e-5)


def test_prefill_predicts_the_first_token_and_its_cache_does_not_depend_on_padding():
  prompt, length, tokens = tiny.problem(LLAMA)
  params = tiny.params_of(LLAMA)
  prefill = jit(functools.partial(decoder.prefill, LLAMA))
  last, cache = prefill(params, prompt, length)
  for n, size in enumerate(length):
    expected = tiny.naive_logits(LLAMA, params, prompt[n, :size])[-1]
    np.testing.assert_allclose(project(params, last[n]), expected, rtol=0, atol=2e-5)
  more = np.pad(prompt, ((0, 0), (0, 3)), constant_values=7)
  _, longer = prefill(params, more, length)
  assert cache.k.shape == (LLAMA.num_layers, 3, 8, LLAMA.num_kv_heads, LLAMA.head_dim)
  for n, size in enumerate(length):
    for a, b in ((cache.k, longer.k), (cache.v, longer.v)):
      np.testing.assert_allclose(a[:, n, :size], b[:, n, :size], rtol=0, atol=1e-5)


def test_rope_only_sees_distances_so_shifted_positions_give_the_same_logits():
  """Llama's scaling divides frequencies, not positions: it holds with it too."""
  config = ModelConfig(
    **{**tiny.FAMILIES["llama"].__dict__, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)}
  )
  x = np.random.default_rng(0).normal(size=(2, 5, 4, 6)).astype(np.float32)
  position = np.arange(5)
  freq = decoder.rope_frequencies(config)
  scores = [
    jnp.einsum("shd,thd->hst", *(decoder.rotate(a, position + shift, freq) for a in x))
    for shift in (0, 11)
  ]
  np.testing.assert_allclose(*scores, rtol=0, atol=1e-4)
  moved = jnp.einsum(
    "shd,thd->hst", decoder.rotate(x[0], position, freq), decoder.rotate(x[1], position + 1, freq)
  )
  assert np.abs(moved - scores[0]).max() > 0.1


# ---- against repeated rows ----------------------------------------------------------------------


def three_forms(config, weight, trunk):
  """The loss as a function of the parameters: shared, packed, repeated."""
  prompt, length, tokens = tiny.problem(config)
  n, g, t = tokens.shape
  rows, first = repeated(prompt, length, tokens, () if trunk is None else trunk)
  ids, position, segment = packed(tokens, (weight != 0).sum(-1))
  packed_weight = np.zeros(ids.shape, weight.dtype)
  for i, j in np.ndindex(n, g):
    packed_weight[i, segment[i] == j] = weight[i, j][weight[i, j] != 0]

  def shared(params):
    logits = shared_logits(config, params, prompt, length, tokens, trunk=trunk)
    return loss_of(logits, tokens, weight)

  def in_rows(params):
    where = (ids, position, segment)
    x = decoder.packed_hidden(config, params, prompt, length, *where, trunk=trunk)
    return loss_of(project(params, x), ids, packed_weight)

  def apart(params):
    logits = repeated_logits(config, params, rows, first, t)
    return loss_of(logits, tokens.reshape(n * g, t), weight.reshape(n * g, t))

  return shared, in_rows, apart


@pytest.mark.parametrize(
  "family, trunk, dtype",
  [
    ("qwen2", TRUNK, np.float64),
    ("qwen3", None, np.float64),
    pytest.param("qwen3", TRUNK, np.float32, marks=pytest.mark.slow),
  ],
)
def test_loss_and_every_gradient_equal_repeated_rows(family, trunk, dtype):
  """Ragged prompts and completions, one of them empty. Gradients relative to their largest."""
  config = tiny.FAMILIES[family]  # one has its head tied and q/k norms, the other has biases
  weight = np.random.default_rng(1).normal(size=(3, 3, 4)).astype(dtype)
  weight[np.arange(4) >= np.asarray([[4, 2, 1], [3, 0, 4], [4, 4, 2]])[..., None]] = 0
  params, float_type = tiny.params_of(config), contextlib.nullcontext()
  if dtype == np.float64:
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    float_type = wide()
  shared, in_rows, apart = three_forms(config, weight, trunk)
  with float_type:
    found = [
      jax.tree.map(np.asarray, jit(jax.value_and_grad(f))(params))
      for f in ((shared, apart) if trunk is None else (shared, in_rows, apart))
    ]
  *ours, (loss, expected) = found
  tolerance = 1e-10 if dtype == np.float64 else 1e-5
  assert abs(loss) > 0.1 and loss.dtype == dtype
  for value, grads in ours:
    np.testing.assert_allclose(value, loss, rtol=tolerance)
    flat = jax.tree_util.tree_leaves_with_path(expected)
    for (path, want), got in zip(flat, jax.tree.leaves(grads), strict=True):
      size = np.abs(want).max()
      assert size > 0, path
      np.testing.assert_allclose(got / size, want / size, rtol=0, atol=tolerance, err_msg=str(path))


def test_remat_and_the_reference_kernel_change_no_gradient():
  prompt, length, tokens = tiny.problem(LLAMA)
  params = tiny.params_of(LLAMA)

  def gradient(**options):
    def loss(params):
      logits = shared_logits(LLAMA, params, prompt, length, tokens, trunk=TRUNK, **options)
      return loss_of(logits, tokens, np.ones(tokens.shape, np.float32))

    return jax.tree.leaves(jit(jax.grad(loss))(params))

  plain, other = gradient(), gradient(remat=True, implementation="reference")
  for a, b in zip(plain, other, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(a).max())


def test_a_completion_leaves_the_others_bit_identical():
  prompt, length, tokens = tiny.problem(LLAMA)
  params = tiny.params_of(LLAMA)
  f = jit(functools.partial(decoder.shared_hidden, LLAMA))
  before = f(params, prompt, length, tokens)
  changed = tokens.copy()
  changed[:, 1] = (changed[:, 1] + 1) % LLAMA.vocab_size
  after = f(params, prompt, length, changed)
  np.testing.assert_array_equal(before[:, ::2], after[:, ::2])
  assert np.abs(before[:, 1, 1:] - after[:, 1, 1:]).max() > 0.1


def test_padding_ids_of_prompts_and_completions_change_no_bit():
  """Whatever the ids are, the stop or pad id among them: lengths decide, not ids."""
  prompt, length, tokens = tiny.problem(LLAMA)
  params = tiny.params_of(LLAMA)
  f = jit(functools.partial(decoder.shared_hidden, LLAMA))
  before = f(params, prompt, length, tokens)
  padding = np.arange(8)[None] >= length[:, None]
  tail = np.arange(4) >= 2  # completions of two tokens
  for fill in (0, 36):
    after = f(
      params, np.where(padding, fill, prompt), length, np.where(tail[None, None], fill, tokens)
    )
    np.testing.assert_array_equal(before[:, :, :3], after[:, :, :3])


def test_a_prompt_gives_the_same_logits_in_every_bucket():
  prompt, length, tokens = tiny.problem(LLAMA)
  params = tiny.params_of(LLAMA)
  f = jit(lambda *a: jax.nn.log_softmax(shared_logits(LLAMA, params, *a)))
  small = f(prompt, length, tokens)
  for width in (9, 31):
    padded = np.pad(prompt, ((0, 0), (0, width - 8)), constant_values=1)
    np.testing.assert_allclose(f(padded, length, tokens), small, rtol=0, atol=1e-5)


# ---- arithmetic ---------------------------------------------------------------------------------

# SmolLM2-135M's block. One layer: the compiler counts the body of a scan once.
BLOCK = ModelConfig(
  vocab_size=64,
  hidden_size=576,
  intermediate_size=1536,
  num_layers=1,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
)


def flops(f, *shapes):
  params = jax.eval_shape(lambda: decoder.init(BLOCK, jax.random.key(0)))
  ids = [jax.ShapeDtypeStruct(s, jnp.int32) for s in shapes]
  return jax.jit(functools.partial(f, BLOCK)).lower(params, *ids).cost_analysis()["flops"]


def formula(rows, tokens, pairs):
  """Paper 59: multiplications and additions of matrices on `tokens`, and of `pairs` of tokens."""
  c = BLOCK
  q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  matrices = c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size)
  return rows * (2 * tokens * matrices + 4 * q * pairs)


@pytest.mark.parametrize("p, g, t", [(64, 8, 32), (256, 4, 32), (512, 8, 32)])
def test_flops_are_those_of_the_formula_and_fall_against_repeated_rows(p, g, t):
  """The last completion token is never an input, so T + 1 tokens are given. Two prompts.

  XLA forms scores that the causal mask drops: those of a completion and of a block of the prompt.
  """
  n = 2
  ours = flops(decoder.shared_hidden, (n, p), (n,), (n, g, t + 1))
  causal = formula(n, p + g * t, (p * p + g * t * (2 * p + t)) / 2)
  masked = formula(n, p + g * t, p * p + g * t * (p + t))  # every score formed, as XLA does
  assert ours < 1.02 * masked
  assert 1 <= ours / causal < 1.05
  theirs = flops(decoder.hidden, (n * g, p + t), (n * g,))
  repeated_causal = formula(n * g, p + t, (p + t) ** 2 / 2)
  assert abs((ours / theirs) / (causal / repeated_causal) - 1) < 0.05


def test_flops_of_the_gradient_are_three_times_those_of_the_values_and_the_scores_once_more():
  """The backward pass computes attention scores again instead of keeping them; the rest is what
  XLA counts for element-wise work."""
  n, p, g, t = 2, 256, 4, 32
  gradient = jax.grad(
    lambda params, c, *a: jnp.sum(decoder.shared_hidden(c, params, *a)), argnums=0
  )
  shapes = (n, p), (n,), (n, g, t + 1)
  once = flops(decoder.shared_hidden, *shapes)
  scores = formula(n, 0, p * p + g * t * (p + t)) / 2
  found = flops(lambda c, params, *a: gradient(params, c, *a), *shapes)
  assert abs(found / (3 * once + scores) - 1) < 0.05


def test_a_trunk_is_computed_once_for_all_prompts():
  n, p, g, t, c = 16, 16, 2, 8, 256
  with_trunk = lambda config, params, *a: decoder.shared_hidden(config, params, *a[:3], trunk=a[3])
  inside = flops(decoder.shared_hidden, (n, c + p), (n,), (n, g, t + 1))
  apart = flops(with_trunk, (n, p), (n,), (n, g, t + 1), (c,))
  tokens = c + n * (p + g * t)
  assert apart < 1.1 * formula(1, tokens, c * c + n * (p * (c + p) + g * t * (c + p + t)))
  assert apart < inside / 4
