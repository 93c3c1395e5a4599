"""GPU kernels (Pallas on Triton): entry points with the signatures of `reference`."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.prefix_attention import gpu_common as common
from pallas_kernels.prefix_attention import reference
from pallas_kernels.prefix_attention.gpu_backward import backward
from pallas_kernels.prefix_attention.gpu_blocks import Blocks, Tile, choose
from pallas_kernels.prefix_attention.gpu_decode import decode
from pallas_kernels.prefix_attention.gpu_forward import forward

__all__ = ["Blocks", "Tile", "decode_attention", "prefix_attention"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, length, table, layout: common.Layout, blocks: Blocks):
  return forward(q, k, v, length, table, layout, blocks.forward)[0]


def _attend_fwd(q, k, v, length, table, layout, blocks):
  out, lse = forward(q, k, v, length, table, layout, blocks.forward)
  return out, (q, k, v, length, table, out, lse)


def _attend_bwd(layout, blocks, saved, do):
  q, k, v, length, table, out, lse = saved
  tiles = blocks.dq, blocks.dkv
  grads = backward(q, k, v, length, table, out, lse, do, layout, tiles)
  return *grads, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def prefix_attention(
  q: Float[Array, "N S H d"],
  k: Float[Array, "N M K d"],
  v: Float[Array, "N M K d"],
  prefix_length: Int[Array, " N"],
  *,
  num_prefix: int,
  group: int = 1,
  segment: Int[Array, "N X"] | None = None,
  window: int | None = None,
  softcap: float | None = None,
  sink: bool = False,
  blocks: Blocks | None = None,
  interpret: bool = False,
) -> Float[Array, "N S H d"]:
  """`reference.prefix_attention` with kernels forward and backward; saves out and log-sum-exp.

  bfloat16, float16 and float32, sums in float32; the head sizes of gpu_blocks.TABLE.
  NotImplementedError for others, and for what is empty.
  """
  heads, kv_heads, d = q.shape[2], k.shape[2], q.shape[3]
  common.check({"q": q, "k": k, "v": v}, heads, kv_heads, interpret)
  layout = common.Layout(
    queries=q.shape[1],
    keys=k.shape[1],
    num_prefix=num_prefix,
    heads=heads,
    kv_heads=kv_heads,
    head_dim=d,
    window=window,
    softcap=softcap,
    sink=bool(sink),
    packed=segment is not None,
    interpret=interpret,
  )
  blocks = choose(blocks, q.dtype, d)
  length = jnp.minimum(prefix_length.astype(jnp.int32), layout.prefix)
  table = common.make_table(layout, length, group, segment)
  return _attend(q, k, v, length, table, layout, blocks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9, 10))
def _decode(
  q, k_prefix, v_prefix, prefix_length, k, v, visible, softcap, sink, blocks: Blocks, interpret
):
  tiles = (blocks.prefix, blocks.own)
  return decode(
    q, k_prefix, v_prefix, prefix_length, k, v, visible, softcap, sink, tiles, interpret
  )


def _decode_fwd(*args):
  return _decode(*args), args[:7]


def _decode_bwd(softcap, sink, blocks, interpret, saved, do):
  """By the specification: nothing is trained through the sampler's cache."""
  del blocks, interpret
  q, k_prefix, v_prefix, prefix_length, k, v, visible = saved

  def plain(q, k_prefix, v_prefix, k, v):
    return reference.decode_attention(
      q, k_prefix, v_prefix, prefix_length, k, v, visible, softcap=softcap, sink=sink
    )

  dq, dk_prefix, dv_prefix, dk, dv = jax.vjp(plain, q, k_prefix, v_prefix, k, v)[1](do)
  return dq, dk_prefix, dv_prefix, None, dk, dv, None


_decode.defvjp(_decode_fwd, _decode_bwd)


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
  blocks: Blocks | None = None,
  interpret: bool = False,
) -> Float[Array, "N S Q H d"]:
  """`reference.decode_attention`: the prefix cache is read once a group, own columns up to the
  last visible one. The gradient is the specification's.
  """
  arrays = {"q": q, "k_prefix": k_prefix, "v_prefix": v_prefix, "k": k, "v": v}
  common.check(arrays, q.shape[3], k.shape[1], interpret)
  blocks = choose(blocks, q.dtype, q.shape[-1])
  return _decode(
    q, k_prefix, v_prefix, prefix_length, k, v, visible, softcap, bool(sink), blocks, interpret
  )
