"""The decode form: a few query tokens a slot, S slots on one prefix cache.

Two kernels. The first gives every piece of the prefix to a program, with the queries of all slots,
so that the cache is read once a group; the second owns a slot, reads its columns and merges the
pieces with them: all keep (weighted values, largest score, sum of weights), which is exact.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.prefix_attention import gpu_common as common
from pallas_kernels.prefix_attention.gpu_blocks import Tile
from pallas_kernels.prefix_attention.gpu_common import Layout
from pallas_kernels.prefix_attention.gpu_forward import absorb, finish, start

PROGRAMS = 264  # two for each multiprocessor of an H200


def _prefix_kernel(
  length_ref, q_ref, k_ref, v_ref, acc_ref, stat_ref, *, layout: Layout, tile: Tile, pieces: int
):
  length = length_ref[pl.program_id(2)]
  row_blocks = common.ceil_div(layout.rows, tile.rows)
  piece = common.floor_div(pl.program_id(0), row_blocks)
  row_block = pl.program_id(0) - piece * row_blocks
  rows = common.rows_of(row_block, tile.rows, layout.rep, layout.rows)
  q = common.load_rows(q_ref, rows)
  blocks = common.ceil_div(length, tile.keys)
  share = common.ceil_div(blocks, pieces)
  low = piece * share
  high = jnp.minimum(low + share, blocks)
  full = jnp.minimum(jnp.maximum(common.floor_div(length, tile.keys), low), high)

  def step(masked: bool, block, carry):
    first = block * tile.keys
    ok = first + common.span(tile.keys) < length if masked else None
    mask = None if ok is None else jnp.broadcast_to(ok[None, :], (tile.rows, tile.keys))
    k = common.load_keys(k_ref, first, tile.keys, ok)
    v = common.load_keys(v_ref, first, tile.keys, ok)
    return absorb(carry, q, k, v, mask, layout)

  carry = start(tile.rows, layout.head_dim, False, acc_ref.dtype)
  carry = jax.lax.fori_loop(low, full, functools.partial(step, False), carry)
  acc, top, total = jax.lax.fori_loop(full, high, functools.partial(step, True), carry)
  flat = row_block * tile.rows + common.span(tile.rows)
  columns = common.span(layout.head_dim)[None, :]
  inside = jnp.broadcast_to(rows.inside[:, None], acc.shape)
  plgpu.store(acc_ref.at[piece, flat[:, None], columns], acc, mask=inside)
  for i, value in enumerate((top, total)):
    plgpu.store(stat_ref.at[piece, i, flat], value, mask=rows.inside)


def _own_kernel(
  stop_ref,
  q_ref,
  k_ref,
  v_ref,
  visible_ref,
  acc_ref,
  stat_ref,
  out_ref,
  *,
  layout: Layout,
  tile: Tile,
  pieces: int,
  queries: int,
):
  slot, n = pl.program_id(0), pl.program_id(2)
  here = common.rows_of(0, tile.rows, layout.rep, queries * layout.rep)
  rows = here._replace(token=slot * queries + here.token)
  q = common.load_rows(q_ref, rows)

  def step(block, carry):
    first = block * tile.keys
    index = first + common.span(tile.keys)
    inside = here.inside[:, None] & (index < layout.keys)[None, :]
    at = visible_ref.at[slot, here.token[:, None], index[None, :]]
    mask = plgpu.load(at, mask=inside, other=False)
    ok = jnp.max(mask.astype(jnp.int32), axis=0) > 0
    k = common.load_keys(k_ref, first, tile.keys, ok)
    v = common.load_keys(v_ref, first, tile.keys, ok)
    return absorb(carry, q, k, v, mask, layout)

  carry = start(tile.rows, layout.head_dim, layout.sink, acc_ref.dtype)
  last = common.ceil_div(stop_ref[n, slot], tile.keys)
  carry = jax.lax.fori_loop(jnp.int32(0), last, step, carry)
  flat = slot * (queries * layout.rep) + common.span(tile.rows)
  columns = common.span(layout.head_dim)[None, :]
  inside = jnp.broadcast_to(here.inside[:, None], (tile.rows, layout.head_dim))

  def merge(piece, carry):
    acc, top, total = carry
    other = plgpu.load(acc_ref.at[piece, flat[:, None], columns], mask=inside, other=0.0)
    other_top, other_total = (
      plgpu.load(stat_ref.at[piece, i, flat], mask=here.inside, other=0.0) for i in range(2)
    )
    higher = jnp.maximum(top, other_top)
    mine, theirs = jnp.exp2(top - higher), jnp.exp2(other_top - higher)
    acc = acc * mine[:, None] + other * theirs[:, None]
    return acc, higher, total * mine + other_total * theirs

  out, _ = finish(jax.lax.fori_loop(0, pieces, merge, carry))
  common.store_rows(out_ref, rows, out)


def _pieces(layout: Layout, tile: Tile, n: int) -> int:
  """Of the prefix: enough programs to fill the device, and none without a block of keys."""
  programs = n * layout.kv_heads * common.ceil_div(layout.rows, tile.rows)
  return max(1, min(PROGRAMS // programs, common.ceil_div(layout.keys, tile.keys)))


def _fit(tile: Tile, rows: int, most: int | None) -> Tile:
  """As many rows as there are, at least what a product of matrices needs."""
  size = max(16, pl.next_power_of_2(rows))
  return dataclasses.replace(tile, rows=size if most is None else min(size, most))


def _prefix(q, k, v, length, layout: Layout, tile: Tile, pieces: int):
  """acc [N, K, pieces, R, d]; largest score and sum of weights [N, K, pieces, 2, R]."""
  n, d = q.shape[0], layout.head_dim
  wide = common.wide(q.dtype)
  key = pl.BlockSpec((None, None, layout.keys, d), lambda _, h, i: (i, h, 0, 0))
  pairs = n * layout.rows * layout.kv_heads * layout.keys
  shape = (n, layout.kv_heads, pieces)
  return pl.pallas_call(
    functools.partial(_prefix_kernel, layout=layout, tile=tile, pieces=pieces),
    grid=(pieces * common.ceil_div(layout.rows, tile.rows), layout.kv_heads, n),
    in_specs=[
      pl.BlockSpec((n,), lambda _, h, i: (0,)),
      pl.BlockSpec((None, layout.queries, layout.rep, d), lambda _, h, i: (i, 0, h, 0)),
      key,
      key,
    ],
    out_specs=[
      pl.BlockSpec((None, None, pieces, layout.rows, d), lambda _, h, i: (i, h, 0, 0, 0)),
      pl.BlockSpec((None, None, pieces, 2, layout.rows), lambda _, h, i: (i, h, 0, 0, 0)),
    ],
    out_shape=[
      jax.ShapeDtypeStruct((*shape, layout.rows, d), wide),
      jax.ShapeDtypeStruct((*shape, 2, layout.rows), wide),
    ],
    compiler_params=tile.params,
    cost_estimate=pl.CostEstimate(
      flops=4 * pairs * d, transcendentals=pairs, bytes_accessed=2 * k.size * k.dtype.itemsize
    ),
    interpret=layout.interpret,
    name="prefix_attention_decode_prefix",
  )(length, q, k, v)


def _own(q, k, v, visible, pieces, layout: Layout, tile: Tile):
  """Columns of every slot, merged with the pieces of the prefix: [N, S Q, H, d]."""
  n, slots, queries, columns = visible.shape
  d, rep = layout.head_dim, layout.rep
  seen = jnp.any(visible, axis=2)
  stop = jnp.max(jnp.where(seen, common.span(columns)[None, None] + 1, 0), axis=-1)
  acc, stat = pieces
  key = pl.BlockSpec((None, None, None, columns, d), lambda s, h, i: (i, h, s, 0, 0))
  rows = pl.BlockSpec((None, slots * queries, rep, d), lambda s, h, i: (i, 0, h, 0))
  pairs = n * layout.rows * layout.kv_heads * columns
  return pl.pallas_call(
    functools.partial(
      _own_kernel,
      layout=layout,
      tile=tile,
      pieces=acc.shape[2],
      queries=queries,
    ),
    grid=(slots, layout.kv_heads, n),
    in_specs=[
      pl.BlockSpec((n, slots), lambda s, h, i: (0, 0)),
      rows,
      key,
      key,
      pl.BlockSpec((None, slots, queries, columns), lambda s, h, i: (i, 0, 0, 0)),
      pl.BlockSpec((None, None, *acc.shape[2:]), lambda s, h, i: (i, h, 0, 0, 0)),
      pl.BlockSpec((None, None, *stat.shape[2:]), lambda s, h, i: (i, h, 0, 0, 0)),
    ],
    out_specs=rows,
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    compiler_params=tile.params,
    cost_estimate=pl.CostEstimate(
      flops=4 * pairs * d, transcendentals=pairs, bytes_accessed=2 * k.size * k.dtype.itemsize
    ),
    interpret=layout.interpret,
    name="prefix_attention_decode_own",
  )(stop, q, k, v, visible, acc, stat)


def decode(
  q: Float[Array, "N S Q H d"],
  k_prefix: Float[Array, "N K P d"],
  v_prefix: Float[Array, "N K P d"],
  prefix_length: Int[Array, " N"],
  k: Float[Array, "N K S C d"],
  v: Float[Array, "N K S C d"],
  visible: Bool[Array, "N S Q C"],
  softcap: float | None,
  sink: bool,
  tiles: tuple[Tile, Tile],
  interpret: bool,
) -> Float[Array, "N S Q H d"]:
  n, slots, queries, heads, d = q.shape
  kv = k.shape[1]
  layout = Layout(
    queries=slots * queries,
    keys=k_prefix.shape[2],
    num_prefix=0,
    heads=heads,
    kv_heads=kv,
    head_dim=d,
    softcap=softcap,
    sink=sink,
    interpret=interpret,
  )
  length = jnp.minimum(prefix_length.astype(jnp.int32), layout.keys)
  flat = q.reshape(n, slots * queries, heads, d)
  prefix_tile = _fit(tiles[0], layout.rows, tiles[0].rows)
  own_tile = _fit(tiles[1], queries * layout.rep, None)  # a slot is one program
  count = _pieces(layout, prefix_tile, n)
  pieces = _prefix(flat, k_prefix, v_prefix, length, layout, prefix_tile, count)
  columns = dataclasses.replace(layout, keys=k.shape[3])
  return _own(flat, k, v, visible, pieces, columns, own_tile).reshape(q.shape)
