"""Decoding on a TPU: the prompt's cache is read once for all slots, each slot's own cache once.

The rows of a key head are its query heads of all slots. They visit the blocks of the prompt's
cache together, then each slot's rows visit the blocks of its own cache that show anything; one
running maximum and sum over both parts is the exact log-sum-exp merge.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.prefix_attention import tpu_common as common

_PREFIX, _OWN = 1, 2


def _lists(
  prefix_length: Int[Array, " N"], visible: Bool[Array, "N S Q C"], prefix_blocks: int, keys: int,
  block: int,
) -> tuple[Int[Array, " V"], Int[Array, " V"], Int[Array, ""]]:  # fmt: skip
  """What a row visits: (kind + 4 * block of the prompt), (slot * 2^14 + block of its cache), and
  the number of visits of the longest row. A block that is not visited now is the one before or
  after, so that it need not be fetched."""
  n, s, _, c = visible.shape
  own_blocks = common.ceil(c, block)
  start = jnp.arange(prefix_blocks, dtype=jnp.int32) * keys
  shown = jnp.any(visible, axis=2)
  shown = jnp.pad(shown, ((0, 0), (0, 0), (0, own_blocks * block - c)))
  shown = jnp.any(shown.reshape(n, s * own_blocks, block), axis=-1)
  wanted = jnp.concatenate([start[None] < prefix_length[:, None], shown], axis=1)
  wanted = wanted.at[:, 0].set(True)
  count = jnp.sum(wanted, axis=1, dtype=jnp.int32)[:, None]
  order = jnp.argsort(~wanted, axis=1, stable=True).astype(jnp.int32)
  step = jnp.arange(order.shape[1], dtype=jnp.int32)[None]
  place = jnp.take_along_axis(order, jnp.minimum(step, count - 1), axis=1)
  is_own = place >= prefix_blocks
  kind = jnp.where(step < count, jnp.where(is_own, _OWN, _PREFIX), common.SKIP)
  last_prefix = jnp.max(jnp.where(is_own, 0, place), axis=1, keepdims=True)
  own = jnp.where(is_own, place - prefix_blocks, s * own_blocks)
  own = jnp.where(is_own, own, jnp.min(own, axis=1, keepdims=True))
  own = jnp.minimum(own, s * own_blocks - 1)
  first = kind + 4 * jnp.where(is_own, last_prefix, place)
  second = (own // own_blocks << 14) + own % own_blocks
  return first.reshape(-1), second.reshape(-1), jnp.max(count)


def _fold(q, k, v, mask, rows, refs, scale, softcap):
  """Adds keys [C, d] to the sums of the queries `q` [R, d], which are `rows` of the scratch."""
  top, total, acc = refs
  score = common.dot(q, k, (1, 1)) * scale
  if softcap is not None:
    score = softcap * jnp.tanh(score * (1 / softcap))
  score = jnp.where(mask, score, common.LOW)
  old = top[rows, :1]
  new = jnp.maximum(old, jnp.max(score, axis=1, keepdims=True))
  weight = jnp.exp(score - new)
  fade = jnp.exp(old - new)
  now = total[rows, :1] * fade + jnp.sum(weight, axis=1, keepdims=True)
  top[rows, :] = jnp.broadcast_to(new, (q.shape[0], top.shape[1]))
  total[rows, :] = jnp.broadcast_to(now, (q.shape[0], total.shape[1]))
  acc[rows, :] = acc[rows, :] * fade + common.dot(weight.astype(v.dtype), v)


def _kernel(first, second, lengths, q, q_own, k_prefix, v_prefix, k, v, visible, out,
            top, total, acc, *, width, scale, columns, softcap, sink):  # fmt: skip
  n, step = pl.program_id(0), pl.program_id(2)
  item = first[n * width + step]
  refs = top, total, acc

  @pl.when(step == 0)
  def _():
    top[...] = jnp.full(top.shape, 0 if sink else common.TOP, top.dtype)
    total[...] = jnp.full(total.shape, 1 if sink else 0, total.dtype)
    acc[...] = jnp.zeros_like(acc)

  @pl.when((item & 3) == _PREFIX)
  def _():
    keys, size = k_prefix.shape[0], q.shape[0]
    left = lengths[n] - (item >> 2) * keys
    key = jax.lax.broadcasted_iota(jnp.int32, (size, keys), 1)
    row = jax.lax.broadcasted_iota(jnp.int32, v_prefix.shape, 0)
    values = jnp.where(row < left, v_prefix[...], 0)
    _fold(q[...], k_prefix[...], values, key < left, pl.ds(0, size), refs, scale, softcap)

  @pl.when((item & 3) == _OWN)
  def _():
    place = second[n * width + step]
    size, keys = q_own.shape[0], k.shape[0]
    left = columns - (place & 0x3FFF) * keys
    seen = jax.lax.broadcasted_iota(jnp.int32, visible.shape, 1) < left
    seen = jnp.where(seen, visible[...].astype(jnp.float32), 0)
    # Any query's view, as a column, to silence the values that nobody sees.
    anyone = jnp.broadcast_to(jnp.max(seen, axis=0, keepdims=True), (8, keys))
    anyone = jnp.broadcast_to(anyone.T[:, :1], v.shape)
    values = jnp.where(anyone > 0, v[...], 0)
    rows = pl.ds(pl.multiple_of((place >> 14) * size, size), size)
    mask = jnp.broadcast_to(seen, (size, keys)) > 0
    _fold(q_own[...], k[...], values, mask, rows, refs, scale, softcap)

  @pl.when(step == pl.num_programs(2) - 1)
  def _():
    safe = jnp.where(total[:, :1] > 0, total[:, :1], 1)
    out[...] = (acc[...] / safe).astype(out.dtype)


def _rows(q: Float[Array, "N S Q H d"], kv: int, padded: int) -> Float[Array, "N K R d"]:
  """Row (slot, r, query) of key head j, `padded` rows a slot."""
  n, s, a, h, d = q.shape
  q = q.reshape(n, s, a, kv, h // kv, d).transpose(0, 3, 1, 4, 2, 5).reshape(n, kv, s, -1, d)
  pad = padded - q.shape[3]
  return jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, pad), (0, 0))).reshape(n, kv, s * padded, d)


def _specs(width, rows, size, shown, keys, block, d) -> list[pl.BlockSpec]:
  """Of all rows, a slot's rows, both caches of the prompt, both of the slot, what it shows."""
  slot = lambda n, w, second: second[n * width + w] >> 14
  column = lambda n, w, second: second[n * width + w] & 0x3FFF
  all_rows = lambda n, h, w, *_: (n, h, 0, 0)
  own_rows = lambda n, h, w, _, second, __: (n, h, slot(n, w, second), 0)
  prefix = lambda n, h, w, first, *_: (n, h, first[n * width + w] >> 2, 0)
  own = lambda n, h, w, _, second, __: (n, h, slot(n, w, second), column(n, w, second), 0)
  seen = lambda n, h, w, _, second, __: (n, slot(n, w, second), 0, column(n, w, second))
  return [
    pl.BlockSpec((None, None, rows, d), all_rows),
    pl.BlockSpec((None, None, size, d), own_rows),
    *[pl.BlockSpec((None, None, keys, d), prefix)] * 2,
    *[pl.BlockSpec((None, None, None, block, d), own)] * 2,
    pl.BlockSpec((None, None, shown, block), seen),
  ]


def decode_attention(
  q: Float[Array, "N S Q H d"],
  k_prefix: Float[Array, "N K P d"],
  v_prefix: Float[Array, "N K P d"],
  prefix_length: Int[Array, " N"],
  k: Float[Array, "N K S C d"],
  v: Float[Array, "N K S C d"],
  visible: Bool[Array, "N S Q C"],
  *,
  softcap: float | None = None,
  sink: bool = False,
  blocks: common.Blocks | None = None,
  interpret: bool = False,
) -> Float[Array, "N S Q H d"]:
  """As `reference.decode_attention`; without a gradient. Caches are read where they lie."""
  n, s, a, h, d = q.shape
  kv, p, c = k.shape[1], k_prefix.shape[2], k.shape[3]
  cache = common.check(q, k_prefix, v_prefix, k, v, kv=kv, blocks=blocks, interpret=interpret).cache
  keys, block = common.fit(p, cache), common.fit(c, cache)
  prefix_blocks, own_blocks = common.ceil(p, keys), common.ceil(c, block)
  width = prefix_blocks + s * own_blocks
  if n * width > common.MAX_LIST // 2 or max(own_blocks, s) >= 2**14:
    raise NotImplementedError(f"{n} rows of {width} visits: too long a list")
  tile = 8 if q.dtype.itemsize >= 4 else 16
  size = common.ceil(a * h // kv, tile) * tile
  rows = _rows(q, kv, size)
  seen = visible.astype(jnp.int32)
  if a > 1:
    seen = jnp.pad(jnp.tile(seen, (1, 1, h // kv, 1)),
                   ((0, 0), (0, 0), (0, size - a * h // kv), (0, 0)))  # fmt: skip
  first, second, count = _lists(prefix_length, visible, prefix_blocks, keys, block)

  cached = s * c + p
  out = pl.pallas_call(
    functools.partial(
      _kernel, width=width, scale=1 / math.sqrt(d), columns=c, softcap=softcap, sink=sink
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(n, kv, count),
      in_specs=_specs(width, s * size, size, seen.shape[2], keys, block, d),
      out_specs=pl.BlockSpec((None, None, s * size, d), lambda n, h, w, *_: (n, h, 0, 0)),
      scratch_shapes=[pltpu.VMEM((s * size, x), jnp.float32) for x in (128, 128, d)],
    ),
    out_shape=jax.ShapeDtypeStruct(rows.shape, q.dtype),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=pl.CostEstimate(
      flops=4 * d * n * h * a * s * (p + c),
      transcendentals=n * h * a * s * (p + c),
      bytes_accessed=2 * (n * kv * cached * d + q.size) * q.dtype.itemsize,
    ),
    interpret=interpret,
    name="prefix_attention_decode",
  )(first, second, prefix_length.astype(jnp.int32), rows, rows, k_prefix, v_prefix, k, v, seen)
  out = out.reshape(n, kv, s, size, d)[:, :, :, : a * h // kv]
  return out.reshape(n, kv, s, h // kv, a, d).transpose(0, 2, 4, 1, 3, 5).reshape(n, s, a, h, d)
