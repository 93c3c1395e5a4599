"""What a query sees, as two ranges of keys: [a0, a1) of the prefix, [b0, b1) of its completion.

The tokens of a completion are adjacent, so the mask of paper 59, a sliding window included, is a
union of two ranges: the kernels need four integers a query and no ids of keys. A tree (a prefix of
prefixes, in depth-first order) would be one range more a level.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def run_start(segment: Int[Array, "N X"]) -> Int[Array, "N X"]:
  """Index of the first token of the run of equal ids that a token is in."""
  index = jnp.broadcast_to(jnp.arange(segment.shape[1])[None], segment.shape)
  new = jnp.concatenate(
    [jnp.ones_like(segment[:, :1], bool), segment[:, 1:] != segment[:, :-1]], axis=1
  )
  return jax.lax.cummax(jnp.where(new, index, 0), axis=1)


def live(
  prefix_length: Int[Array, " N"], keys: int, own: int, segment: Int[Array, "N X"] | None
) -> Bool[Array, "N M"]:
  """Which of the M keys, the last `own` of them completion tokens, are not padding."""
  n = prefix_length.shape[0]
  prefix = jnp.arange(keys - own)[None] < prefix_length[:, None]
  rest = jnp.ones((n, own), bool) if segment is None else segment >= 0
  return jnp.concatenate([prefix, rest], axis=1)


def ranges(
  prefix_length: Int[Array, " N"],
  keys: int,
  queries: int,
  num_prefix: int,
  group: int,
  segment: Int[Array, "N X"] | None,
  window: int | None,
) -> Int[Array, "N 4 S"]:
  """(a0, a1, b0, b1) of each of the S queries, which are the last S of M keys; int32.

  Both ranges of padding are empty (a0 = a1 = b0 = b1 = 0), and so is the second of a prompt's
  token (b0 = b1).
  """
  x = queries - num_prefix
  n, prefix = prefix_length.shape[0], keys - x
  length = prefix_length.astype(jnp.int32)[:, None]
  each = max(x // group, 1)
  start = (jnp.arange(x) // each * each)[None] if segment is None else run_start(segment)
  start = jnp.broadcast_to(start, (n, x)).astype(jnp.int32)
  own = jnp.arange(x, dtype=jnp.int32)[None]
  prompt = jnp.broadcast_to(
    jnp.arange(prefix - num_prefix, prefix, dtype=jnp.int32)[None], (n, num_prefix)
  )
  index = jnp.concatenate([prompt, jnp.broadcast_to(own + prefix, (n, x))], axis=1)
  position = jnp.concatenate([prompt, length + own - start], axis=1)
  b1 = index + 1
  b0 = jnp.concatenate([prompt + 1, start + prefix], axis=1)
  a0 = jnp.zeros_like(index)
  a1 = jnp.minimum(b1, length)
  if window is not None:
    a0 = jnp.clip(position - window + 1, 0, a1)
    b0 = jnp.minimum(jnp.maximum(b0, b1 - window), b1)
  alive = live(prefix_length, keys, x, segment)[:, keys - queries :]
  return jnp.where(alive[:, None], jnp.stack([a0, a1, b0, b1], axis=1), 0)
