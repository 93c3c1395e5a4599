"""Kernels on several devices: each runs them on its own rows, heads and part of the vocabulary.

A compiler splits plain XLA by itself and a kernel not at all, so a kernel's call is wrapped in
`jax.shard_map` here. On one device, and for plain XLA, the functions are those of pallas_kernels.
"""

import functools

import jax
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import dispatch
from pallas_kernels import prefix_attention as attention
from pallas_kernels import token_logprob as logprob


def prefix_attention(rows: Sharding | None, kv_heads: int, implementation: str | None):
  """`prefix_attention`, on each device for its own rows and heads where a kernel runs on several:
  a compiler splits plain XLA by itself and a kernel not at all."""
  if not isinstance(rows, NamedSharding) or not dispatch.wants_kernel(implementation, rows):
    return attention.prefix_attention
  heads = "tensor" if kv_heads % rows.mesh.shape["tensor"] == 0 else None
  own, of_rows = P(rows.spec[0], None, heads), P(rows.spec[0])

  def call(q, k, v, length, *, trunk, segment=None, **options):
    optional = {"trunk": trunk, "segment": segment}
    specs = {"trunk": P(None, heads), "segment": of_rows}
    given = {name: x for name, x in optional.items() if x is not None}
    run = lambda q, k, v, length, more: attention.prefix_attention(
      q, k, v, length, **more, **options
    )
    return jax.shard_map(
      run,
      mesh=rows.mesh,
      in_specs=(own, own, own, of_rows, {name: specs[name] for name in given}),
      out_specs=own,
      check_vma=False,
    )(q, k, v, length, given)

  return call


def token_logprob(rows: Sharding | None, chunk: int, implementation: str | None):
  """`token_logprob`; where a kernel runs on several devices, each does its own tokens and its own
  part of the vocabulary."""
  if rows is None or rows.num_devices == 1:
    return functools.partial(logprob.token_logprob, chunk=chunk, implementation=implementation)
  if not isinstance(rows, NamedSharding) or not dispatch.wants_kernel(implementation, rows):
    return functools.partial(
      logprob.token_logprob, chunk=chunk, strided=True, implementation=implementation or "xla"
    )
  mesh, tokens = rows.mesh, P(rows.spec[0])

  def call(x, head, target, temperature):
    options = {"temperature": temperature, "chunk": chunk, "implementation": implementation}
    divides = head.shape[0] % mesh.shape["tensor"] == 0
    if divides:
      part = functools.partial(logprob.token_logprob_sharded, axis_name="tensor", **options)
    else:
      part = functools.partial(logprob.token_logprob, **options)
    specs = (tokens, P("tensor") if divides else P(), tokens)
    return jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)(
      x, head, target
    )

  return call
