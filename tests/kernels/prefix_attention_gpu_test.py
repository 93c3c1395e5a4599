"""The GPU kernels in interpret mode against the specification."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels import prefix_attention as attention
from pallas_kernels.prefix_attention import gpu, gpu_blocks, reference
from pallas_kernels.prefix_attention.cases import CASES, DECODE_CASES

SMALL = gpu_blocks.uniform(16)
PACKED = next(case for case in CASES if case.packed and case.window).small()
kernel = functools.partial(gpu.prefix_attention, blocks=SMALL, interpret=True)
decode = functools.partial(gpu.decode_attention, blocks=SMALL, interpret=True)
by_name = functools.partial(pytest.mark.parametrize, ids=lambda case: case.name)


def runs(rng, n, x):
  """[n, x] ids of adjacent completions of random lengths; one is padding, and so is a single token
  between some: in reach of one block of queries."""
  ids = np.sort(rng.integers(0, 5, (n, x)), axis=1)
  dead = ids == rng.integers(0, 5, (n, 1))
  dead |= (np.diff(ids, axis=1, prepend=ids[:, :1]) > 0) & (ids != 4)
  return np.where(dead, -1, ids).astype(np.int32)


def draw(case, seed=0, dtype=np.float32):
  """(q, k, v, cotangent), (lengths with the trunk, segment or None)."""
  rng = np.random.default_rng(seed)
  s = case.prompt + case.own
  rows = (case.rows, s, case.heads, case.head_dim)
  keys = (case.rows, case.trunk + s, case.kv_heads, case.head_dim)
  arrays = [rng.normal(size=shape).astype(dtype) for shape in (rows, keys, keys, rows)]
  length = rng.integers(1, case.prompt + 1, case.rows)
  length[-1] = case.prompt
  segment = runs(rng, case.rows, case.own) if case.packed else None
  return [2 * arrays[0], *arrays[1:]], ((case.trunk + length).astype(np.int32), segment)


def dead(case, length, segment):
  """[N, M] padding among the keys; its last S columns are the queries."""
  prefix = np.arange(case.trunk + case.prompt)[None] >= length[:, None]
  own = np.zeros((case.rows, case.own), bool) if segment is None else segment < 0
  return np.concatenate([prefix, own], axis=1)


@functools.cache
def compiled(function, case, width=0):
  """Value and gradients; `width` keeps float64 apart."""
  del width

  def run(q, k, v, cotangent, length, segment):
    def call(q, k, v):
      return function(q, k, v, length, segment=segment, **case.options)

    out, back = jax.vjp(call, q, k, v)
    return out, *back(cotangent)

  return jax.jit(run)


def both(case, arrays, ids):
  return compiled(kernel, case)(*arrays, *ids), compiled(reference.prefix_attention, case)(
    *arrays, *ids
  )


def close(found, expected, atol=1e-5):
  for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


@by_name("case", [case.small() for case in CASES])
def test_values_and_gradients_equal_the_specification(case):
  close(*both(case, *draw(case)))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**20))
def test_any_lengths_and_any_cuts_of_packed_rows(seed):
  close(*both(PACKED, *draw(PACKED, seed)))


@by_name("case", [PACKED, CASES[1].small()])
def test_padding_changes_nothing_and_gets_nothing_whatever_it_holds(case):
  arrays, ids = draw(case, 1)
  clean = compiled(kernel, case)(*arrays, *ids)
  hole = dead(case, *ids)
  rows = hole[:, case.trunk :]
  assert hole.any()
  for fill in (np.nan, np.inf):
    q, k, v, cotangent = (a.copy() for a in arrays)
    q[rows], k[hole], v[hole], cotangent[rows] = fill, fill, fill, fill
    poisoned = compiled(kernel, case)(q, k, v, cotangent, *ids)
    for a, b, mask in zip(poisoned, clean, (rows, rows, hole, hole), strict=True):
      assert (np.asarray(a)[mask] == 0).all()
      np.testing.assert_array_equal(a, b)


def test_a_prompt_without_a_token_and_a_row_of_padding_give_zeros():
  arrays, (length, segment) = draw(PACKED, 2)
  length, segment = length * 0, segment * 0 - 1
  for a in compiled(kernel, PACKED)(*arrays, length, segment):
    assert (np.asarray(a) == 0).all()


def test_float64_is_kept_in_interpret_mode():
  case = CASES[6].small()
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # arange is int64 here
    arrays, ids = draw(case, 3, np.float64)
    found = compiled(kernel, case, 64)(*arrays, *ids)
    assert found[0].dtype == np.float64
  arrays, ids = draw(case, 3)
  for a, b in zip(compiled(kernel, case)(*arrays, *ids), found, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_bfloat16_stays_within_a_hundredth_of_float32():
  case = CASES[6].small()
  arrays, ids = draw(case, 4)
  short = [jnp.asarray(a, jnp.bfloat16) for a in arrays]
  expected = compiled(reference.prefix_attention, case)(
    *(a.astype(jnp.float32) for a in short), *ids
  )
  for a, b in zip(compiled(kernel, case)(*short, *ids), expected, strict=True):
    assert a.dtype == jnp.bfloat16
    error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
    assert error < 1e-2


def test_default_blocks_and_a_trunk_through_the_public_function():
  case = CASES[1].small()
  (q, k, v, _), (length, _) = draw(case, 5)
  trunk = k[0, : case.trunk], v[0, : case.trunk]
  arrays = q, k[:, case.trunk :], v[:, case.trunk :], length - case.trunk
  call = functools.partial(attention.prefix_attention, trunk=trunk, **case.options)
  found, expected = (
    jax.jit(functools.partial(call, implementation=name))(*arrays)
    for name in ("gpu_interpret", "reference")
  )
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_rows_split_over_a_mesh():
  case = CASES[0].small()
  arrays, (length, _) = draw(case, 6)
  arrays, length = [np.tile(a, (4, 1, 1, 1)) for a in arrays], np.tile(length, 4)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def local(q, k, v, cotangent, length):
    out, back = jax.vjp(lambda *a: kernel(*a, length, **case.options), q, k, v)
    return out, *back(cotangent)

  split = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
  expected = compiled(reference.prefix_attention, case)(*arrays, length, None)
  close(jax.jit(split)(*arrays, length), expected)


def test_what_the_kernels_cannot_take_is_refused_in_one_line():
  case = CASES[0].small()
  (q, k, v, _), (length, _) = draw(case)
  for call, line in (
    (lambda: gpu.prefix_attention(q, k, v, length, **case.options), "head size"),
    (lambda: kernel(q, k.astype(jnp.bfloat16), v, length, **case.options), "k is bfloat16"),
    (lambda: kernel(q[:, :, :5], k, v, length, **case.options), "multiple"),
    (lambda: kernel(q[:0], k[:0], v[:0], length[:0], **case.options), "empty"),
  ):
    with pytest.raises(NotImplementedError, match=line) as error:
      call()
    assert "\n" not in str(error.value)


def test_blocks_check_themselves():
  for bad, line in (
    ({"rows": 8}, "rows=8"),
    ({"keys": 48}, "keys=48"),
    ({"warps": 3}, "warps=3"),
    ({"stages": 0}, "stages=0"),
  ):
    with pytest.raises(ValueError, match=line):
      gpu.Tile(**({"rows": 16, "keys": 16} | bad))
  with pytest.raises(ValueError, match="dq: must be a Tile"):
    gpu.Blocks(*[gpu.Tile(16, 16)], *[None] * 4)  # ty: ignore
  with pytest.raises(ValueError, match="blocks: must be gpu.Blocks"):
    gpu_blocks.choose(16, jnp.float32, 64)


def draw_decode(case, seed=0):
  rng = np.random.default_rng(seed)
  shapes = case.shapes
  arrays = {
    name: rng.normal(size=shapes[name]).astype(np.float32)
    for name in ("q", "k_prefix", "v_prefix", "k", "v")
  }
  length = rng.integers(0, case.prompt + 1, case.rows).astype(np.int32)
  length[-1] = case.prompt
  visible = rng.random(shapes["visible"]) < 0.7
  visible[..., case.columns * 2 // 3 :] = False
  visible[0, 0] = False  # a slot that has sampled nothing
  return arrays | {"prefix_length": length, "visible": visible}


@functools.cache
def compiled_decode(function, case):
  return jax.jit(lambda arrays: function(**arrays, **case.options))


@by_name("case", [case.small() for case in DECODE_CASES])
def test_decoding_equals_the_specification_and_reads_no_padding(case):
  arrays = draw_decode(case)
  found = compiled_decode(decode, case)(arrays)
  expected = compiled_decode(reference.decode_attention, case)(arrays)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  prompt = np.arange(case.prompt)[None] >= arrays["prefix_length"][:, None]
  unseen = ~arrays["visible"].any(axis=2)  # [N, S, C]
  for names, hole in ((("k_prefix", "v_prefix"), prompt), (("k", "v"), unseen)):
    for name in names:
      full = np.broadcast_to(hole[:, None, ..., None], arrays[name].shape)
      arrays[name] = np.where(full, np.float32(np.nan), arrays[name])
  np.testing.assert_array_equal(compiled_decode(decode, case)(arrays), found)


def test_decoding_with_nothing_to_see_gives_zeros_and_its_gradient_is_the_specification_s():
  case = DECODE_CASES[0].small()
  arrays = draw_decode(case, 1)
  arrays["prefix_length"][0] = 0
  assert (np.asarray(compiled_decode(decode, case)(arrays))[0, 0] == 0).all()

  def loss(function, q, k_prefix, k):
    out = function(**(arrays | {"q": q, "k_prefix": k_prefix, "k": k}))
    return jnp.sum(out**2)

  grads = (
    jax.jit(jax.grad(functools.partial(loss, f), argnums=(0, 1, 2)))(
      arrays["q"], arrays["k_prefix"], arrays["k"]
    )
    for f in (decode, reference.decode_attention)
  )
  for a, b in zip(*grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_decoding_by_name_with_one_query_a_slot():
  case = DECODE_CASES[0].small()
  arrays = draw_decode(case, 2)
  arrays |= {"q": arrays["q"][:, :, 0], "visible": arrays["visible"][:, :, 0]}
  found, expected = (
    jax.jit(functools.partial(attention.decode_attention, implementation=name))(**arrays)
    for name in ("gpu_interpret", "reference")
  )
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
