"""Backward pass on a TPU: scores are formed again, once by queries (dq), once by keys (dk, dv).

A block of the prompt's keys visits the blocks of queries of all completions in one pass, so its
gradients are summed over the group in float32 scratch and written once.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.prefix_attention import tpu_common as common
from pallas_kernels.prefix_attention.tpu_forward import cost


def _gradients(item, key_block, masked, refs, scale, options: common.Options):
  """Weights and gradients of the scores before scaling, both [keys, columns]."""
  ranges, q, grad, lse, delta, k, v = refs
  score = common.dot(k[...], q[...]) * scale
  score, slope = common.masked_scores(score, ranges, key_block, masked, options)
  weight = jnp.exp(score - lse[...])
  back = weight * (common.dot(v[...], grad[...]) - delta[...])
  return weight, back if slope is None else back * slope


def _query_kernel(work, ranges, q, grad, lse, delta, k, v, k_turned, dq, acc, *, width, scale,
                  options: common.Options):  # fmt: skip
  item = work[pl.program_id(0) * width + pl.program_id(2)]
  refs = ranges, q, grad, lse, delta, k, v

  @pl.when((item & common.FIRST) != 0)
  def _():
    acc[...] = jnp.zeros_like(acc)

  def visit(masked: bool):
    _, back = _gradients(item, common.inner_of(item), masked, refs, scale, options)
    acc[...] += common.dot(k_turned[...], back.astype(k_turned.dtype))

  for kind in (common.MASKED, common.FULL):
    pl.when((item & 3) == kind)(functools.partial(visit, kind == common.MASKED))

  @pl.when((item & common.LAST) != 0)
  def _():
    dq[...] = (acc[...] * scale).astype(dq.dtype)


def _key_kernel(work, ranges, q, grad, lse, delta, k, v, dk, dv, acc_k, acc_v, *, width, scale,
                options: common.Options):  # fmt: skip
  item = work[pl.program_id(0) * width + pl.program_id(2)]
  refs = ranges, q, grad, lse, delta, k, v

  @pl.when((item & common.FIRST) != 0)
  def _():
    acc_k[...] = jnp.zeros_like(acc_k)
    acc_v[...] = jnp.zeros_like(acc_v)

  def visit(masked: bool):
    weight, back = _gradients(item, common.outer_of(item), masked, refs, scale, options)
    acc_v[...] += common.dot(weight.astype(grad.dtype), grad[...], (1, 1))
    acc_k[...] += common.dot(back.astype(q.dtype), q[...], (1, 1))

  for kind in (common.MASKED, common.FULL):
    pl.when((item & 3) == kind)(functools.partial(visit, kind == common.MASKED))

  @pl.when((item & common.LAST) != 0)
  def _():
    dk[...] = (acc_k[...] * scale).astype(dk.dtype)
    dv[...] = acc_v[...].astype(dv.dtype)


def backward(
  q: Float[Array, "N S H d"],
  k: Float[Array, "N M K d"],
  v: Float[Array, "N M K d"],
  ranges: Int[Array, "N 4 S"],
  out: Float[Array, "N S H d"],
  lse: Float[Array, "N S H"],
  grad: Float[Array, "N S H d"],
  options: common.Options,
) -> tuple[Float[Array, "N S H d"], Float[Array, "N M K d"], Float[Array, "N M K d"]]:
  """Gradients of sum(out * grad) in q, k and v; `out` and `lse` as `forward` gives them."""
  (n, s, h, d), (m, kv) = q.shape, k.shape[1:3]
  block, keys = common.fit(s, options.blocks.query_back), common.fit(m, options.blocks.key_back)
  columns = block * (h // kv)
  wide = lambda x: x.astype(jnp.float32)
  delta = jnp.sum(wide(out) * wide(grad), axis=-1)
  k_rows = common.key_rows(k, keys)
  args = (
    common.range_columns(ranges, h // kv, block),
    common.to_columns(q, kv, block),
    common.to_columns(grad, kv, block),
    common.to_columns(lse[..., None], kv, block),
    common.to_columns(delta[..., None], kv, block),
    k_rows,
    common.key_rows(v, keys),
  )
  some, whole = common.overlap(ranges, block, keys, m)
  width = common.most_visits(s, m, block, keys)
  inputs = (
    ("ranges", (4, columns)),
    *(("columns", (x, columns)) for x in (d, d, 1, 1)),
    *(("rows", (keys, d)) for _ in range(2)),
  )
  scale = 1 / math.sqrt(d)

  def call(kernel, by_query, inputs, outputs, scratch, shapes, products, args):
    turn = (lambda x: x) if by_query else (lambda x: x.swapaxes(1, 2))
    work, count = common.visits(turn(some), turn(whole), width)
    specs = functools.partial(common.specs, width, by_query)
    return pl.pallas_call(
      functools.partial(kernel, width=width, scale=scale, options=options),
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(n, kv, count),
        in_specs=specs(*inputs),
        out_specs=specs(*outputs),
        scratch_shapes=[pltpu.VMEM(x, jnp.float32) for x in scratch],
      ),
      out_shape=[jax.ShapeDtypeStruct(x, q.dtype) for x in shapes],
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary")
      ),
      cost_estimate=cost(q, k, options, products),
      interpret=options.interpret,
      name="prefix_attention" + kernel.__name__.removesuffix("_kernel"),
    )(work, *args)

  (dq,) = call(
    _query_kernel, True,
    (*inputs, ("turned", (d, keys))), [("columns", (d, columns))],
    [(d, columns)], [args[1].shape], 3, (*args, k_rows.swapaxes(2, 3)),
  )  # fmt: skip
  dk, dv = call(
    _key_kernel, False,
    inputs, [("rows", (keys, d))] * 2,
    [(keys, d)] * 2, [k_rows.shape] * 2, 4, args,
  )  # fmt: skip
  rows = lambda x: x.transpose(0, 2, 1, 3)[:, :m]
  return common.from_columns(dq, s, h, block), rows(dk), rows(dv)
