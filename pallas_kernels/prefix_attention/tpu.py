"""Pallas kernels for TPU: forward, backward and decode behind the signatures of reference.py."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from pallas_kernels.prefix_attention import ranges as sees
from pallas_kernels.prefix_attention import tpu_common as common
from pallas_kernels.prefix_attention.tpu_backward import backward
from pallas_kernels.prefix_attention.tpu_common import Blocks, default_blocks
from pallas_kernels.prefix_attention.tpu_decode import decode_attention
from pallas_kernels.prefix_attention.tpu_forward import forward

__all__ = ["Blocks", "decode_attention", "default_blocks", "prefix_attention"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: common.Options, q, k, v, ranges):
  return forward(q, k, v, ranges, options)[0]


def _forward(options, q, k, v, ranges):
  out, lse = forward(q, k, v, ranges, options)
  # Under jax.checkpoint, a policy that saves these names spares the kernel a second run.
  out = checkpoint_name(out, "prefix_attention_out")
  lse = checkpoint_name(lse, "prefix_attention_lse")
  return out, (q, k, v, ranges, out, lse)


def _backward(options, kept, grad):
  q, k, v, ranges, out, lse = kept
  return *backward(q, k, v, ranges, out, lse, grad, options), None


_attend.defvjp(_forward, _backward)


def _pairs(s: int, m: int, num_prefix: int, group: int) -> int:
  """Scores of one head of a full-length row; packed completions count as one."""
  length, x = m - (s - num_prefix), s - num_prefix
  prompt = num_prefix * (2 * length - num_prefix + 1) // 2
  return prompt + x * (2 * length + x // group + 1) // 2


def _row_by_row(options, q, k, v, ranges):
  """Where the lists of visits of all rows would not fit: one call a row."""

  def one(row):
    q, k, v, ranges = (a[None] for a in row)
    return jnp.squeeze(_attend(options, q, k, v, ranges), 0)

  return jax.lax.map(one, (q, k, v, ranges))


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
  """As `reference.prefix_attention`. `interpret`: runs the kernels' Python on any backend.

  Raises NotImplementedError for what the kernels do not take: see `tpu_common.check`.
  """
  s, (m, kv) = q.shape[1], k.shape[1:3]
  blocks = common.check(q, k, v, kv=kv, blocks=blocks, interpret=interpret)
  options = common.Options(
    softcap=softcap,
    sink=sink,
    window=window is not None,
    blocks=blocks,
    interpret=interpret,
    pairs=_pairs(s, m, num_prefix, group),
  )
  ranges = sees.ranges(prefix_length, m, s, num_prefix, group, segment, window)
  live = sees.live(prefix_length, m, s - num_prefix, segment)[..., None, None]
  alive = live[:, m - s :]
  q, k, v = (jnp.where(x, a, 0) for x, a in ((alive, q), (live, k), (live, v)))
  longest = max(
    common.most_visits(s, m, common.fit(s, a), common.fit(m, b))
    for a, b in ((blocks.query, blocks.key), (blocks.query_back, blocks.key_back))
  )
  if longest > common.MAX_LIST or max(s, m) > 128 * 2**12:
    raise NotImplementedError(f"rows of {s} queries and {m} keys: too long for a list of visits")
  run = _attend if longest * q.shape[0] <= common.MAX_LIST else _row_by_row
  return jnp.where(alive, run(options, q, k, v, ranges), 0)
