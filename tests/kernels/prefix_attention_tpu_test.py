"""The TPU kernels, run by Pallas' interpreter, against the specification."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import dispatch
from pallas_kernels import prefix_attention as attention
from pallas_kernels.prefix_attention import ranges, tpu, tpu_common
from pallas_kernels.prefix_attention.cases import CASES, DECODE_CASES

SMALL = tpu.Blocks(query=16, key=24, query_back=24, key_back=16, cache=8)
by_name = functools.partial(pytest.mark.parametrize, "case", ids=lambda c: c.name)
# Interpreted kernels are large programs on small arrays: a third of the time to compile.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
few = settings(max_examples=3, deadline=None)


class Data(NamedTuple):
  q: np.ndarray
  k: np.ndarray
  v: np.ndarray
  trunk: tuple | None
  cotangent: np.ndarray
  length: np.ndarray
  segment: np.ndarray | None


def draw(case, seed) -> Data:
  """Rows of random lengths; -1 is padding, at the end of a packed row and between completions."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  segment = None
  if case.packed:
    segment = np.sort(rng.integers(0, 5, (case.rows, case.own)), axis=1)
    segment[(segment == 2) | (segment == 4)] = -1
  shape = case.trunk, case.kv_heads, case.head_dim
  return Data(
    *(normal(*shape) for shape in case.shapes.values()),
    (normal(*shape), normal(*shape)) if case.trunk else None,
    normal(*case.shapes["q"]),
    rng.integers(1, case.prompt + 1, case.rows).astype(np.int32),
    None if segment is None else segment.astype(np.int32),
  )


def value_and_gradients(case, implementation, blocks=SMALL):
  def run(data: Data):
    def call(q, k, v, trunk):
      return attention.prefix_attention(
        q, k, v, data.length, trunk=trunk, segment=data.segment, implementation=implementation,
        blocks=blocks if implementation.startswith("tpu") else None, **case.options,
      )  # fmt: skip

    out, back = jax.vjp(call, *data[:4])
    return out, *back(data.cotangent)

  return run


@functools.cache
def compiled(case, implementation):
  return jax.jit(value_and_gradients(case, implementation), compiler_options=QUICK)


def close(found, expected, atol):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=atol)


def padding(case, data):
  prompt = np.arange(case.prompt)[None] >= data.length[:, None]
  own = np.zeros((case.rows, case.own), bool) if data.segment is None else data.segment < 0
  return np.concatenate([prompt, own], axis=1)


@by_name([c.small() for c in CASES])
def test_values_and_all_gradients_equal_the_reference(case):
  data = draw(case, 0)
  expected = compiled(case, "reference")(data)
  close(compiled(case, "tpu_interpret")(data), expected, 2e-5)


PACKED = CASES[5].small()  # packed, with a window


@few
@given(seed=st.integers(0, 2**20))
def test_ragged_packed_rows_equal_the_reference(seed):
  data = draw(PACKED, seed)
  expected = compiled(PACKED, "reference")(data)
  close(compiled(PACKED, "tpu_interpret")(data), expected, 2e-5)


def test_what_padding_holds_changes_no_bit_and_its_gradients_are_0():
  data = draw(PACKED, 1)
  bad = padding(PACKED, data)
  assert bad[:, : PACKED.prompt].any() and bad[:, PACKED.prompt :].any()
  poison = lambda a, x: np.where(bad[..., None, None], x, a).astype(np.float32)
  run = compiled(PACKED, "tpu_interpret")
  clean = run(data)
  for value in (np.nan, np.inf):
    moved = {x: poison(getattr(data, x), value) for x in ("q", "k", "v", "cotangent")}
    found = run(data._replace(**moved))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
      np.testing.assert_array_equal(a, b)
  assert not any(np.asarray(a)[bad].any() for a in clean[:4])


def test_bfloat16_differs_from_float32_by_its_rounding():
  case = CASES[0].small()
  data = draw(case, 2)
  half = Data(*(a if a is None else a.astype(jnp.bfloat16) for a in data[:5]), *data[5:])
  wide = Data(*(a if a is None else a.astype(np.float32) for a in half[:5]), *data[5:])
  found = compiled(case, "tpu_interpret")(half)
  assert all(a.dtype == jnp.bfloat16 for a in found[:4])
  for a, b in zip(found[:4], compiled(case, "reference")(wide)[:4], strict=True):
    assert np.abs(np.asarray(a, np.float32) - b).max() < 1e-2 * np.abs(b).max()


def test_rows_whose_lists_do_not_fit_together_run_one_by_one(monkeypatch):
  case = CASES[0].small()
  data = draw(case, 3)
  text = lambda: str(jax.make_jaxpr(value_and_gradients(case, "tpu_interpret"))(data))
  assert "scan" not in text()
  monkeypatch.setattr(tpu_common, "MAX_LIST", 10)
  assert "scan" in text()
  found = jax.jit(value_and_gradients(case, "tpu_interpret"), compiler_options=QUICK)(data)
  close(found, compiled(case, "reference")(data), 2e-5)
  monkeypatch.setattr(tpu_common, "MAX_LIST", 2)
  with pytest.raises(NotImplementedError, match="too long"):
    value_and_gradients(case, "tpu_interpret")(data)


def test_rows_split_over_devices_give_the_same():
  case = CASES[0].small()
  data = draw(case, 4)
  wide = Data(*(None if a is None else np.concatenate([a] * 2) for a in data))
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("rows",))
  rows = PartitionSpec("rows")
  split = jax.jit(
    jax.shard_map(
      value_and_gradients(case, "tpu_interpret"),
      mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False,
    ),
    compiler_options=QUICK,
  )  # fmt: skip
  found, whole = split(wide), compiled(case, "tpu_interpret")(data)
  for a, b in zip(found[:4], whole[:4], strict=True):
    np.testing.assert_allclose(a, np.concatenate([b, b]), rtol=0, atol=1e-6)


# ---- which blocks are visited -------------------------------------------------------------------


@functools.cache
def lists(case, query, key):
  """From (length, segment): the four integers of each query, which blocks see which, both lists."""
  m = case.trunk + case.prompt + case.own

  def run(length, segment):
    x = ranges.ranges(
      length + case.trunk, m, m - case.trunk, case.prompt,
      1 if case.packed else case.group, segment, case.window,
    )  # fmt: skip
    some, whole = tpu_common.overlap(x, query, key, m)
    width = tpu_common.most_visits(m - case.trunk, m, query, key)
    turned = some.swapaxes(1, 2), whole.swapaxes(1, 2)
    both = tuple(tpu_common.visits(*a, width) for a in ((some, whole), turned))
    return x, some, whole, both

  return jax.jit(run, compiler_options=QUICK)


@by_name([CASES[1].small(), CASES[5].small(), CASES[7].small()])
@pytest.mark.parametrize("by_query", [True, False])
def test_the_list_of_visits_covers_what_is_seen_and_marks_what_needs_no_mask(case, by_query):
  data = draw(case, 5)
  x, some, _, both = lists(case, 16, 8)(data.length, data.segment)
  a0, a1, b0, b1 = (np.asarray(x[:, i, :, None]) for i in range(4))
  key = np.arange(case.trunk + case.prompt + case.own)
  mask = ((key >= a0) & (key < a1)) | ((key >= b0) & (key < b1))
  work, count = both[0 if by_query else 1]
  for row, items in zip(mask, np.asarray(work).reshape(case.rows, -1), strict=True):
    assert not (items[int(count) :] & 3).any()
    items = items[(items & 3) > 0]
    outer, inner = items >> 18, (items >> 4) & 0x3FFF
    assert (np.diff(outer) >= 0).all() and set(outer) == set(
      range(some.shape[1 if by_query else 2])
    )
    edges = np.diff(outer, prepend=-1) > 0
    np.testing.assert_array_equal((items & tpu_common.FIRST) > 0, edges)
    np.testing.assert_array_equal((items & tpu_common.LAST) > 0, np.roll(edges, -1))
    pairs = dict(zip(zip(outer, inner, strict=True), items & 3, strict=True))
    assert len(pairs) == len(items)
    for b, c in np.ndindex(*some.shape[1:]):
      tile = row[16 * b : 16 * b + 16, 8 * c : 8 * c + 8]
      kind = pairs.get((b, c) if by_query else (c, b), tpu_common.SKIP)
      assert kind or not tile.any()
      if kind == tpu_common.FULL:  # padding sees nothing, and what it computes is dropped
        assert tile.shape[1] == 8 and tile[row[16 * b : 16 * b + 16].any(1)].all()


def test_visits_are_those_of_the_formula():
  """Llama's case: scores formed, over those of paper 59. Blocks cost their diagonals, no more."""
  case = CASES[2]
  _, some, whole, _ = lists(case, 256, 512)(np.full(1, case.prompt, np.int32), None)
  some, whole = np.asarray(some), np.asarray(whole)
  formed = some.sum() * 256 * 512
  assert case.pairs(heads=False) < formed < 1.15 * case.pairs(heads=False)
  assert whole.sum() > 0.8 * some.sum()


# ---- decoding -----------------------------------------------------------------------------------


def draw_decode(case, seed):
  rng = np.random.default_rng(seed)
  arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in case.shapes.items()}
  arrays["prefix_length"] = rng.integers(1, case.prompt + 1, case.rows).astype(np.int32)
  visible = rng.random(case.shapes["visible"]) < 0.5
  visible[..., 8:16] = False  # a block that nobody sees
  visible[0, 0] = False  # a slot that has only the prompt
  arrays["visible"] = visible
  return arrays


def decode(case, implementation, arrays):
  blocks = SMALL if implementation.startswith("tpu") else None
  call = functools.partial(
    attention.decode_attention, implementation=implementation, blocks=blocks, **case.options
  )
  return jax.jit(call, compiler_options=QUICK)(*arrays.values())


@by_name([c.small() for c in DECODE_CASES])
def test_decoding_equals_the_reference_whatever_unseen_columns_hold(case):
  arrays = draw_decode(case, 0)
  expected = decode(case, "reference", arrays)
  seen = arrays["visible"].any(2)[:, None, ..., None]
  prefix = np.arange(case.prompt) < arrays["prefix_length"][:, None]
  poisoned = dict(arrays)
  for name in ("k", "v"):
    poisoned[name] = np.where(seen, arrays[name], np.nan).astype(np.float32)
    cache = arrays[f"{name}_prefix"]
    poisoned[f"{name}_prefix"] = np.where(prefix[:, None, :, None], cache, np.nan)
  np.testing.assert_allclose(decode(case, "tpu_interpret", poisoned), expected, rtol=0, atol=1e-5)


# ---- choosing -----------------------------------------------------------------------------------


def test_what_the_kernels_refuse_goes_on_to_xla(monkeypatch):
  q = jnp.ones((1, 1, 1, 2), jnp.float16)
  call = functools.partial(attention.prompt_attention, q, q, q, jnp.ones(1, jnp.int32))
  with pytest.raises(NotImplementedError, match="dtype float16"):
    call(implementation="tpu")
  monkeypatch.setattr(dispatch.jax, "default_backend", lambda: "tpu")
  np.testing.assert_array_equal(call(), q)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"d": 8}, "head size 8"),
    ({"d": 512}, "head size 512"),
    ({"kv": 2}, "3 query heads"),
    ({"dtype": jnp.bfloat16}, "different dtypes"),
  ],
)
def test_an_unsupported_input_is_named(change, message):
  d, kv, dtype = (change.get(x, y) for x, y in (("d", 32), ("kv", 1), ("dtype", jnp.float32)))
  q, k = jnp.zeros((1, 4, 3, d)), jnp.zeros((1, 4, kv, d), dtype)
  with pytest.raises(NotImplementedError, match=message):
    attention.prompt_attention(q, k, k, jnp.ones(1, jnp.int32), implementation="tpu")


def test_blocks_validate_themselves():
  with pytest.raises(ValueError, match="key=12: must be a positive multiple of 8"):
    tpu.Blocks(key=12)
  with pytest.raises(ValueError, match="query=0"):
    tpu.Blocks(query=0)
  with pytest.raises(ValueError, match="query=16: must be a multiple of 128"):
    SMALL.require_lanes()
  for kind in ("TPU v4", "TPU v5 lite", "cpu"):
    for rep, d in ((1, 64), (7, 128), (8, 256), (32, 128)):
      tpu.default_blocks(rep, d, kind).require_lanes()
