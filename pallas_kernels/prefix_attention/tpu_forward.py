"""Forward pass on a TPU: a block of queries visits the blocks of keys that any of it sees."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.prefix_attention import tpu_common as common


def _kernel(
  work, ranges, q, k, v, out, lse, top, total, acc, *, width, scale, options: common.Options
):
  item = work[pl.program_id(0) * width + pl.program_id(2)]

  @pl.when((item & common.FIRST) != 0)
  def _():
    # The sink is a score of 0 with a value of 0, already counted.
    top[...] = jnp.full(top.shape, 0 if options.sink else common.TOP, top.dtype)
    total[...] = jnp.full(total.shape, 1 if options.sink else 0, total.dtype)
    acc[...] = jnp.zeros_like(acc)

  def visit(masked: bool):
    score = common.dot(k[...], q[...]) * scale
    score, _ = common.masked_scores(score, ranges, common.inner_of(item), masked, options)
    old = top[...]
    new = jnp.maximum(old, jnp.max(score, axis=0, keepdims=True))
    weight = jnp.exp(score - new)
    fade = jnp.exp(old - new)
    top[...] = new
    total[...] = total[...] * fade + jnp.sum(weight, axis=0, keepdims=True)
    acc[...] = acc[...] * fade + common.dot(v[...], weight.astype(v.dtype))

  for kind in (common.MASKED, common.FULL):
    pl.when((item & 3) == kind)(functools.partial(visit, kind == common.MASKED))

  @pl.when((item & common.LAST) != 0)
  def _():
    some = total[...] > 0
    safe = jnp.where(some, total[...], 1)
    out[...] = (acc[...] / safe).astype(out.dtype)
    lse[...] = jnp.where(some, top[...] + jnp.log(safe), 0)  # 0: no backward pass overflows


def cost(q, k, options: common.Options, products: int) -> pl.CostEstimate:
  """Of `products` matrix products over full-length rows."""
  n, _, h, d = q.shape
  pairs = n * h * options.pairs
  return pl.CostEstimate(
    flops=2 * products * d * pairs,
    transcendentals=pairs * (1 if options.softcap is None else 2),
    bytes_accessed=(2 * q.size + 2 * k.size) * q.dtype.itemsize,
  )


def forward(
  q: Float[Array, "N S H d"],
  k: Float[Array, "N M K d"],
  v: Float[Array, "N M K d"],
  ranges: Int[Array, "N 4 S"],
  options: common.Options,
) -> tuple[Float[Array, "N S H d"], Float[Array, "N S H"]]:
  """Output and log-sum-exp (float32, over the sink too; 0 for a query that sees nothing)."""
  (n, s, h, d), (m, kv) = q.shape, k.shape[1:3]
  block, keys = common.fit(s, options.blocks.query), common.fit(m, options.blocks.key)
  columns = block * (h // kv)
  some, whole = common.overlap(ranges, block, keys, m)
  width = common.most_visits(s, m, block, keys)
  work, count = common.visits(some, whole, width)
  wide = functools.partial(common.specs, width, True)
  y = common.ceil(s, block) * columns
  out, lse = pl.pallas_call(
    functools.partial(_kernel, width=width, scale=1 / math.sqrt(d), options=options),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(n, kv, count),
      in_specs=wide(
        ("ranges", (4, columns)),
        ("columns", (d, columns)),
        ("rows", (keys, d)),
        ("turned", (d, keys)),
      ),
      out_specs=wide(("columns", (d, columns)), ("columns", (1, columns))),
      scratch_shapes=[pltpu.VMEM((x, columns), jnp.float32) for x in (1, 1, d)],
    ),
    out_shape=[
      jax.ShapeDtypeStruct((n, kv, d, y), q.dtype),
      jax.ShapeDtypeStruct((n, kv, 1, y), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=cost(q, k, options, 2),
    interpret=options.interpret,
    name="prefix_attention_forward",
  )(
    work,
    common.range_columns(ranges, h // kv, block),
    common.to_columns(q, kv, block),
    common.key_rows(k, keys),
    common.key_rows(v, keys).swapaxes(2, 3),
  )
  return (
    common.from_columns(out, s, h, block),
    common.from_columns(lse, s, h, block)[..., 0],
  )
