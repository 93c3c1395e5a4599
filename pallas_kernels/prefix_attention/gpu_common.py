"""What the GPU kernels share: the table of query rows, and the walk over keys.

A program owns one key head of one prompt and a block of its *rows*: row i is head i % rep of the
token i // rep, so the query heads that share keys lie side by side and read them once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Int

from pallas_kernels.prefix_attention.gpu_blocks import TABLE
from pallas_kernels.prefix_attention.ranges import ranges

LOG2E = math.log2(math.e)
LOW = -1e30  # finite: a row with nothing to see must not subtract infinities


@dataclasses.dataclass(frozen=True)
class Layout:
  """The static facts of a call. In tokens: S queries, M keys, P of them prefix."""

  queries: int
  keys: int
  num_prefix: int  # prompt tokens among the queries
  heads: int
  kv_heads: int
  head_dim: int
  window: int | None = None
  softcap: float | None = None
  sink: bool = False
  packed: bool = False  # padding may lie between completions
  interpret: bool = False

  @property
  def rep(self) -> int:
    return self.heads // self.kv_heads

  @property
  def rows(self) -> int:
    return self.queries * self.rep

  @property
  def own(self) -> int:
    """X, completion tokens."""
    return self.queries - self.num_prefix

  @property
  def prefix(self) -> int:
    return self.keys - self.own

  @property
  def ahead(self) -> int:
    """Keys of a text before the prompt: key j is the token j - ahead."""
    return self.keys - self.queries

  @property
  def scale(self) -> float:
    return self.head_dim**-0.5


def check(arrays: dict[str, Array], heads: int, kv_heads: int, interpret: bool) -> None:
  """NotImplementedError for what the kernels cannot take."""
  dtype = jnp.dtype(arrays["q"].dtype)
  for name, a in arrays.items():
    if a.dtype != dtype:
      raise NotImplementedError(f"{name} is {a.dtype} and q is {dtype}: must be the same")
    if not a.size:
      raise NotImplementedError(f"{name} is empty")
  if heads % kv_heads:
    raise NotImplementedError(f"{heads} query heads on {kv_heads} key heads: must be a multiple")
  if not interpret and (dtype.itemsize, arrays["q"].shape[-1]) not in TABLE:
    known = sorted(TABLE)
    found = (dtype.itemsize, arrays["q"].shape[-1])
    raise NotImplementedError(f"(bytes, head size) = {found}: the kernels take {known}")


def ceil_div(a, b: int) -> Any:
  """Of numbers that are not negative, traced or not."""
  return floor_div(a + (b - 1), b)


def floor_div(a, b: int) -> Any:
  if isinstance(a, int):
    return a // b
  # `//` would cost comparisons of signs.
  return jax.lax.div(a, jnp.full_like(a, b))


def dot(a: Array, b: Array, layout: Layout, *, trans_b: bool = False) -> Array:
  """a b or a b^T, accumulated in float32. Of float32 inputs three products of tf32 pieces: 2^-21
  of the result, where one would give 2^-10, and no tensor core multiplies them whole."""
  precision = None
  if a.dtype.itemsize > 2:
    exact = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    precision = jax.lax.Precision.HIGHEST if layout.interpret else exact
  return jax.lax.dot_general(
    a,
    b,
    (((1,), (1 if trans_b else 0,)), ((), ())),
    precision=precision,
    preferred_element_type=wide(a.dtype),
  )


def wide(dtype: Any) -> Any:
  """Of sums: float32, and float64 for float64."""
  return jnp.float64 if dtype == jnp.float64 else jnp.float32


def span(size: int) -> Int[Array, " B"]:
  return jnp.arange(size, dtype=jnp.int32)


class Rows(NamedTuple):
  """Where the rows of a block lie: token and head of each, and whether it exists."""

  token: Array
  head: Array
  inside: Array


def rows_of(block, size: int, rep: int, limit: int) -> Rows:
  """Rows block * size, ..., of `limit`."""
  flat = block * size + span(size)
  token = floor_div(flat, rep)
  return Rows(token, flat - token * rep, flat < limit)


def load_rows(ref, rows: Rows, other: float = 0.0) -> Array:
  """[B, d] from [T, rep, d], or [B] from [T, rep]."""
  if len(ref.shape) == 2:
    return plgpu.load(ref.at[rows.token, rows.head], mask=rows.inside, other=other)
  columns = span(ref.shape[-1])[None, :]
  at = ref.at[rows.token[:, None], rows.head[:, None], columns]
  return plgpu.load(at, mask=_wide(rows.inside, ref.shape[-1]), other=other)


def store_rows(ref, rows: Rows, value: Array) -> None:
  value = value.astype(ref.dtype)
  if len(ref.shape) == 2:
    plgpu.store(ref.at[rows.token, rows.head], value, mask=rows.inside)
    return
  columns = span(ref.shape[-1])[None, :]
  at = ref.at[rows.token[:, None], rows.head[:, None], columns]
  plgpu.store(at, value, mask=_wide(rows.inside, ref.shape[-1]))


def _wide(mask: Array, columns: int) -> Array:
  return jnp.broadcast_to(mask[:, None], (mask.shape[0], columns))


def load_keys(ref, start, size: int, ok: Array | None) -> Array:
  """[size, d] from `start`; 0 where not `ok`."""
  at = ref.at[pl.ds(start, size), :]
  return plgpu.load(at) if ok is None else plgpu.load(at, mask=_wide(ok, ref.shape[-1]), other=0.0)


def store_keys(ref, start, value: Array, ok: Array) -> None:
  at = ref.at[start + span(value.shape[0])[:, None], span(value.shape[1])[None, :]]
  plgpu.store(at, value.astype(ref.dtype), mask=_wide(ok, value.shape[1]))


class Score(NamedTuple):
  """Scores as value * factor, in units of log 2, and d score / d (q k^T) without the factor."""

  value: Array
  factor: float
  slope: Array | None


def score(product: Array, layout: Layout) -> Score:
  """Of q k^T: scaled, and bounded by softcap * tanh(score / softcap)."""
  if layout.softcap is None:
    return Score(product, LOG2E * layout.scale, None)
  double = 2.0 * LOG2E * layout.scale / layout.softcap
  tanh = 1.0 - 2.0 / (jnp.exp2(product * double) + 1.0)  # exp2 may overflow: 1 - 0
  return Score(tanh, layout.softcap * LOG2E, 1.0 - tanh * tanh)


def hide(s: Score, mask: Array | None) -> Array:
  return s.value if mask is None else jnp.where(mask, s.value, -jnp.inf)


# Rows of the table that `make_table` makes and the kernels read.
PREFIX_FIRST, PREFIX_STOP, OWN_FIRST, OWN_STOP, SEEN_UNTIL = range(5)


def make_table(
  layout: Layout,
  prefix_length: Int[Array, " N"],
  group: int,
  segment: Int[Array, "N X"] | None,
) -> Int[Array, "N 5 S"]:
  """The two ranges of keys that a query token sees, as `ranges` gives them, and the token at which
  those that see it as a key of its completion end (0 for the prompt and for padding)."""
  n, x = prefix_length.shape[0], layout.own
  seen = ranges(
    prefix_length, layout.keys, layout.queries, layout.num_prefix, group, segment, layout.window
  )
  token = span(x)[None]
  if segment is None:
    each = max(x // group, 1)
    end = (floor_div(token, each) + 1) * each
  else:
    same = jnp.pad(segment[:, 1:] == segment[:, :-1], ((0, 0), (0, 1)))
    end = jax.lax.cummin(jnp.where(same, x, token + 1), axis=1, reverse=True) if x else token
  if layout.window is not None:
    end = jnp.minimum(end, token + layout.window)
  end = jnp.pad(jnp.broadcast_to(end, (n, x)) + layout.num_prefix, ((0, 0), (layout.num_prefix, 0)))
  end = jnp.where(seen[:, OWN_STOP] > 0, end, 0)
  return jnp.concatenate([seen, end[:, None]], axis=1)


class Seen(NamedTuple):
  """What the rows of a block see: keys from `a0` until `a1` of the prefix and `b0` until `b1`."""

  a0: Array
  a1: Array
  b0: Array
  b1: Array

  @property
  def live(self) -> Array:
    """Rows that are not padding: every other sees at least itself."""
    return self.b1 > 0


def load_entry(table_ref, which: int, token: Array, inside: Array) -> Array:
  return plgpu.load(table_ref.at[which, token], mask=inside, other=0)


def load_seen(table_ref, rows: Rows) -> Seen:
  return Seen(*(load_entry(table_ref, i, rows.token, rows.inside) for i in range(4)))


def within(index: Array, low: Array | None, high: Array) -> Array:
  """low <= index < high; None for a bound that is 0."""
  mask = index < high
  return mask if low is None else mask & (index >= low)


# (first key, which of them exist or None, mask or None, carry) -> carry
Step = Callable[[Any, Any, Any, Any], Any]


def over_keys(step: Step, carry, seen: Seen, table_ref, length, layout: Layout, size: int):
  """`step` for every block of keys that some row of the block sees.

  Blocks of the prefix that all rows see need no mask; the others do, and so does the completion.
  """
  big = jnp.int32(2**30)
  stop = jnp.max(seen.a1)
  full = floor_div(jnp.minimum(jnp.min(jnp.where(seen.live, seen.a1, big)), stop), size)
  low = start = jnp.int32(0)
  if layout.window is not None:
    low = floor_div(jnp.minimum(jnp.min(jnp.where(seen.live, seen.a0, big)), stop), size)
    start = jnp.minimum(ceil_div(jnp.max(seen.a0), size), ceil_div(stop, size))
    full = jnp.maximum(full, start)
  a0 = None if layout.window is None else seen.a0[:, None]

  def masked(block, carry):
    index = block * size + span(size)
    mask = within(index[None, :], a0, seen.a1[:, None])
    return step(block * size, index < length, mask, carry)

  def plain(block, carry):
    return step(block * size, None, None, carry)

  if layout.window is not None:
    carry = jax.lax.fori_loop(low, start, masked, carry)
  carry = jax.lax.fori_loop(start, full, plain, carry)
  carry = jax.lax.fori_loop(full, ceil_div(stop, size), masked, carry)
  if not layout.own:
    return carry
  some = seen.b1 > seen.b0
  first = jnp.min(jnp.where(some, seen.b0, big))
  last = jnp.max(jnp.where(some, seen.b1, 0))

  def own(block, carry):
    index = first + block * size + span(size)
    ok = index < last
    if layout.packed:
      ok = load_entry(table_ref, SEEN_UNTIL, index - layout.ahead, ok) > 0
    mask = within(index[None, :], seen.b0[:, None], seen.b1[:, None])
    return step(first + block * size, ok, mask, carry)

  blocks = ceil_div(jnp.maximum(last - first, 0), size)
  return jax.lax.fori_loop(jnp.int32(0), blocks, own, carry)
