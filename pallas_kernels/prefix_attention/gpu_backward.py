"""The backward kernels: one owns a block of queries and sums dq, one owns keys and sums dk, dv.

Weights are formed again from the saved log-sum-exp. A key of the prefix meets the queries of the
whole group in one walk, so its gradient is summed in registers and written once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.prefix_attention import gpu_common as common
from pallas_kernels.prefix_attention.gpu_blocks import Tile
from pallas_kernels.prefix_attention.gpu_common import Layout
from pallas_kernels.prefix_attention.gpu_forward import cost, specs


def _weights(a, b, layout: Layout, mask, lse):
  """softmax weights and slope of the scores a b^T; `lse` is broadcast against them."""
  s = common.score(common.dot(a, b, layout, trans_b=True), layout)
  return jnp.exp2(common.hide(s, mask) * s.factor - lse), s.slope


def _slanted(weight, back, slope):
  """d loss / d score, before the factor of the scale."""
  ds = weight * back
  return ds if slope is None else ds * slope


def _dq_kernel(
  length_ref, table_ref, q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, dq_ref, *, layout, tile
):
  length = length_ref[pl.program_id(2)]
  block = common.ceil_div(layout.rows, tile.rows) - 1 - pl.program_id(0)
  rows = common.rows_of(block, tile.rows, layout.rep, layout.rows)
  seen = common.load_seen(table_ref, rows)
  q, do = (common.load_rows(ref, rows) for ref in (q_ref, do_ref))
  lse, delta = (common.load_rows(ref, rows)[:, None] for ref in (lse_ref, delta_ref))

  def step(first, ok, mask, dq):
    k = common.load_keys(k_ref, first, tile.keys, ok)
    v = common.load_keys(v_ref, first, tile.keys, ok)
    weight, slope = _weights(q, k, layout, mask, lse)
    ds = _slanted(weight, common.dot(do, v, layout, trans_b=True) - delta, slope)
    return dq + common.dot(ds.astype(k.dtype), k, layout)

  dq = jnp.zeros((tile.rows, layout.head_dim), lse_ref.dtype)
  dq = common.over_keys(step, dq, seen, table_ref, length, layout, tile.keys)
  common.store_rows(dq_ref, rows, dq * layout.scale)


def _prefix_bounds(first, length, layout: Layout, tile: Tile):
  """Blocks of rows that see the prefix keys from `first` on: (a, b, c, d, e). Some rows of [a, b)
  do, all rows of [b, c) and [d, e) do, or are padding; with a window, only some."""
  rows, size = tile.rows, tile.keys
  prompt = jnp.minimum(jnp.maximum(length - layout.ahead, 0), layout.num_prefix)
  token = jnp.maximum(first - layout.ahead, 0)  # the first that sees a key of the block
  every = jnp.maximum(first + size - 1 - layout.ahead, 0)  # the first that sees all
  e = jnp.int32(common.ceil_div(layout.rows, rows))
  if layout.window is not None:
    prompt = jnp.minimum(prompt, jnp.maximum(every + layout.window, 0))
    e = jnp.where(length - (first + size - 1) < layout.window, e, 0)
  a = common.floor_div(token * layout.rep, rows)
  c = common.ceil_div(prompt * layout.rep, rows)
  b = jnp.minimum(jnp.maximum(common.ceil_div(every * layout.rep, rows), a), c)
  d = jnp.maximum(jnp.int32(layout.num_prefix * layout.rep // rows), c)
  seen = first < length
  return (jnp.where(seen, x, 0) for x in (a, b, c, d, e))


def _dkv_kernel(
  length_ref,
  table_ref,
  q_ref,
  k_ref,
  v_ref,
  do_ref,
  lse_ref,
  delta_ref,
  dk_ref,
  dv_ref,
  *,
  layout: Layout,
  tile: Tile,
):
  length = length_ref[pl.program_id(2)]
  prefix_blocks = common.ceil_div(layout.prefix, tile.keys)
  block = pl.program_id(0)
  is_own = block >= prefix_blocks  # a block of completion tokens, counted from the prefix's end
  shift = layout.prefix - prefix_blocks * tile.keys
  first = block * tile.keys + jnp.where(is_own, jnp.int32(shift), 0)
  index = first + common.span(tile.keys)
  token = index - layout.ahead
  inside = is_own & (index < layout.keys)
  until = common.load_entry(table_ref, common.SEEN_UNTIL, token, inside)
  ok = jnp.where(is_own, until > 0, index < length)
  k = common.load_keys(k_ref, first, tile.keys, ok)
  v = common.load_keys(v_ref, first, tile.keys, ok)

  def step(mask_of, block, carry):
    dk, dv = carry
    rows = common.rows_of(block, tile.rows, layout.rep, layout.rows)
    q, do = (common.load_rows(ref, rows) for ref in (q_ref, do_ref))
    lse, delta = (common.load_rows(ref, rows)[None, :] for ref in (lse_ref, delta_ref))
    mask = mask_of and mask_of(common.load_seen(table_ref, rows))
    weight, slope = _weights(k, q, layout, mask, lse)
    dv = dv + common.dot(weight.astype(do.dtype), do, layout)
    ds = _slanted(weight, common.dot(v, do, layout, trans_b=True) - delta, slope)
    return dk + common.dot(ds.astype(q.dtype), q, layout), dv

  def in_prefix(seen):
    low = None if layout.window is None else seen.a0[None, :]
    return common.within(index[:, None], low, seen.a1[None, :])

  def in_own(seen):
    return common.within(index[:, None], seen.b0[None, :], seen.b1[None, :])

  most = None if layout.window is None else in_prefix
  # An own block walks over no rows as if it were of the prefix.
  a, b, c, d, e = _prefix_bounds(first, jnp.where(is_own, 0, length), layout, tile)
  zero = jnp.zeros((tile.keys, layout.head_dim), lse_ref.dtype)
  carry = jax.lax.fori_loop(a, b, functools.partial(step, in_prefix), (zero, zero))
  carry = jax.lax.fori_loop(b, c, functools.partial(step, most), carry)
  if layout.own:
    carry = jax.lax.fori_loop(d, e, functools.partial(step, most), carry)
    low = common.floor_div(jnp.maximum(first - layout.ahead, 0) * layout.rep, tile.rows)
    high = common.ceil_div(jnp.max(until) * layout.rep, tile.rows)  # 0 for a block of the prefix
    carry = jax.lax.fori_loop(low, high, functools.partial(step, in_own), carry)
  dk, dv = carry
  end = jnp.where(is_own, jnp.int32(layout.keys), layout.prefix)
  common.store_keys(dk_ref, first, jnp.where(ok[:, None], dk * layout.scale, 0.0), index < end)
  common.store_keys(dv_ref, first, jnp.where(ok[:, None], dv, 0.0), index < end)


def backward(
  q: Float[Array, "N S H d"],
  k: Float[Array, "N M K d"],
  v: Float[Array, "N M K d"],
  length: Int[Array, " N"],
  table: Int[Array, "N 5 S"],
  out: Float[Array, "N S H d"],
  lse: Float[Array, "N S H"],
  do: Float[Array, "N S H d"],
  layout: Layout,
  tiles: tuple[Tile, Tile],
) -> tuple[Float[Array, "N S H d"], Float[Array, "N M K d"], Float[Array, "N M K d"]]:
  """(dq, dk, dv); 0 for padding, whatever it holds."""
  n = q.shape[0]
  at = specs(layout, n)
  live = (table[:, common.OWN_STOP] > 0)[:, :, None, None]
  # Here and not in the kernels: the loops load nothing whose mask must be loaded first.
  q, do = jnp.where(live, q, 0), jnp.where(live, do, 0)
  delta = jnp.sum(do.astype(lse.dtype) * out.astype(lse.dtype), axis=-1)
  args = (length, table, q, k, v, do, lse, delta)
  names = ("length", "table", "rows", "keys", "keys", "rows", "lse", "lse")
  in_specs = [at[name] for name in names]
  dq_tile, dkv_tile = tiles
  dq = pl.pallas_call(
    functools.partial(_dq_kernel, layout=layout, tile=dq_tile),
    grid=(common.ceil_div(layout.rows, dq_tile.rows), layout.kv_heads, n),
    in_specs=in_specs,
    out_specs=at["rows"],
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    compiler_params=dq_tile.params,
    cost_estimate=cost(layout, n, q.dtype.itemsize, 3),
    interpret=layout.interpret,
    name="prefix_attention_dq",
  )(*args)
  blocks = sum(common.ceil_div(size, dkv_tile.keys) for size in (layout.prefix, layout.own))
  dk, dv = pl.pallas_call(
    functools.partial(_dkv_kernel, layout=layout, tile=dkv_tile),
    grid=(blocks, layout.kv_heads, n),
    in_specs=in_specs,
    out_specs=[at["keys"], at["keys"]],
    out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
    compiler_params=dkv_tile.params,
    cost_estimate=cost(layout, n, q.dtype.itemsize, 4),
    interpret=layout.interpret,
    name="prefix_attention_dkv",
  )(*args)
  return dq, dk, dv
