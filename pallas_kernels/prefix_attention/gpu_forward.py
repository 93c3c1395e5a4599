"""The forward kernel: softmax over prefix and own completion in one pass, and its log-sum-exp."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.prefix_attention import gpu_common as common
from pallas_kernels.prefix_attention.gpu_blocks import Tile
from pallas_kernels.prefix_attention.gpu_common import LOG2E, LOW, Layout


def start(rows: int, head_dim: int, sink: bool, dtype):
  """(weighted values, largest score, sum of weights) before any key; a sink is one of score 0."""
  acc = jnp.zeros((rows, head_dim), dtype)
  fill = jnp.full((rows,), 0.0 if sink else LOW, dtype)
  return acc, fill, jnp.full((rows,), 1.0 if sink else 0.0, dtype)


def absorb(carry, q: Array, k: Array, v: Array, mask: Array | None, layout: Layout):
  """The online softmax: one more block of keys."""
  acc, top, total = carry
  s = common.score(common.dot(q, k, layout, trans_b=True), layout)
  value = common.hide(s, mask)
  higher = jnp.maximum(top, jnp.max(value, axis=1) * s.factor)
  weight = jnp.exp2(value * s.factor - higher[:, None])
  shrink = jnp.exp2(top - higher)
  acc = acc * shrink[:, None] + common.dot(weight.astype(v.dtype), v, layout)
  return acc, higher, total * shrink + jnp.sum(weight, axis=1)


def finish(carry) -> tuple[Array, Array]:
  """Output and log2-sum-exp2; a row that saw nothing gives 0 and 0."""
  acc, top, total = carry
  seen = total > 0
  total = jnp.where(seen, total, 1.0)
  out = jnp.where(seen[:, None], acc / total[:, None], 0.0)
  return out, jnp.where(seen, top + jnp.log(total) * LOG2E, 0.0)


def _kernel(
  length_ref, table_ref, q_ref, k_ref, v_ref, out_ref, lse_ref, *, layout: Layout, tile: Tile
):
  length = length_ref[pl.program_id(2)]
  # Completions first: they see the whole prefix and take longest.
  block = common.ceil_div(layout.rows, tile.rows) - 1 - pl.program_id(0)
  rows = common.rows_of(block, tile.rows, layout.rep, layout.rows)
  seen = common.load_seen(table_ref, rows)
  q = common.load_rows(q_ref, rows._replace(inside=seen.live))

  def step(first, ok, mask, carry):
    k = common.load_keys(k_ref, first, tile.keys, ok)
    v = common.load_keys(v_ref, first, tile.keys, ok)
    return absorb(carry, q, k, v, mask, layout)

  carry = start(tile.rows, layout.head_dim, layout.sink, lse_ref.dtype)
  carry = common.over_keys(step, carry, seen, table_ref, length, layout, tile.keys)
  out, lse = finish(carry)
  common.store_rows(out_ref, rows, jnp.where(seen.live[:, None], out, 0.0))
  common.store_rows(lse_ref, rows, lse)


def specs(layout: Layout, n: int) -> dict[str, pl.BlockSpec]:
  """Whole arrays of one prompt and one key head; the grid is (blocks, key heads, prompts)."""
  s, m, d, rep = layout.queries, layout.keys, layout.head_dim, layout.rep
  key = pl.BlockSpec((None, m, None, d), lambda _, h, i: (i, 0, h, 0))
  return {
    "length": pl.BlockSpec((n,), lambda _, h, i: (0,)),
    "table": pl.BlockSpec((None, 5, s), lambda _, h, i: (i, 0, 0)),
    "rows": pl.BlockSpec((None, s, rep, d), lambda _, h, i: (i, 0, h, 0)),
    "lse": pl.BlockSpec((None, s, rep), lambda _, h, i: (i, 0, h)),
    "keys": key,
  }


def cost(layout: Layout, n: int, itemsize: int, products: int) -> pl.CostEstimate:
  """An upper bound: packed completions are taken for one."""
  pairs = layout.num_prefix * layout.prefix // 2 + layout.own * (layout.prefix + layout.own // 2)
  pairs *= n * layout.heads
  arrays = n * layout.head_dim * (layout.queries * layout.heads + layout.keys * layout.kv_heads)
  return pl.CostEstimate(
    flops=2 * products * pairs * layout.head_dim,
    transcendentals=pairs,
    bytes_accessed=2 * arrays * itemsize,
  )


def forward(
  q: Float[Array, "N S H d"],
  k: Float[Array, "N M K d"],
  v: Float[Array, "N M K d"],
  length: Int[Array, " N"],
  table: Int[Array, "N 5 S"],
  layout: Layout,
  tile: Tile,
) -> tuple[Float[Array, "N S H d"], Float[Array, "N S H"]]:
  """Output, and log2 sum exp2(score log2 e) of every row."""
  n = q.shape[0]
  at = specs(layout, n)
  wide = common.wide(q.dtype)
  return pl.pallas_call(
    functools.partial(_kernel, layout=layout, tile=tile),
    grid=(common.ceil_div(layout.rows, tile.rows), layout.kv_heads, n),
    in_specs=[at["length"], at["table"], at["rows"], at["keys"], at["keys"]],
    out_specs=[at["rows"], at["lse"]],
    out_shape=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct(q.shape[:3], wide),
    ],
    compiler_params=tile.params,
    cost_estimate=cost(layout, n, q.dtype.itemsize, 2),
    interpret=layout.interpret,
    name="prefix_attention_forward",
  )(length, table, q, k, v)
