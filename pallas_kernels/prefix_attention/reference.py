"""The specification: one dense masked softmax over the row [prompt; completion 1; ...; G]."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def prefix_attention(
  q: Float[Array, "N S H d"],
  k: Float[Array, "N M K d"],
  v: Float[Array, "N M K d"],
  prefix_length: Int[Array, " N"],
  *,
  num_prefix: int,
  group: int = 1,
  segment: Int[Array, "N X"] | None = None,
) -> Float[Array, "N S H d"]:
  """softmax(q k^T / sqrt(d)) v with the mask of card 59, every score formed.

  S = num_prefix + X: a prompt padded on the right to `num_prefix`, then X completion tokens.
  Keys may begin with M - S more, of a text before the prompt; `prefix_length` counts those too.
  Query i sees key j if j is a valid prefix key at or before i (any completion sees the whole
  prefix), or j is in the completion of i at or before i. Outputs of padded prompt positions are
  those of a query that sees the valid keys before it: finite, and not to be used.
  """
  n, s, h, d = q.shape
  kv, m = k.shape[2], k.shape[1]
  x = s - num_prefix
  prefix = m - x
  query, key = jnp.arange(m - s, m), jnp.arange(m)
  if segment is None:
    segment = jnp.broadcast_to((jnp.arange(x) // max(x // group, 1))[None], (n, x))
  owner = jnp.concatenate([jnp.full((n, prefix), -1), segment], axis=1)  # of keys
  in_prefix = key < prefix
  valid = (key[None] < prefix_length[:, None]) | ~in_prefix[None]  # [N, M]
  same = owner[:, None, :] == owner[:, m - s :, None]
  sees = (key[None, :] <= query[:, None])[None] & (in_prefix[None, None] | same)
  mask = sees & valid[:, None, :]
  k, v = (jnp.where(valid[:, :, None, None], a, 0) for a in (k, v))
  q = q.reshape(n, s, kv, h // kv, d)
  score = jnp.einsum("nikrd,njkd->nkrij", q, k).astype(jnp.float32) * d**-0.5
  score = jnp.where(mask[:, None, None], score, -jnp.inf)
  p = jnp.exp(score - jnp.max(score, axis=-1, keepdims=True))
  p = p / jnp.sum(p, axis=-1, keepdims=True)
  return jnp.einsum("nkrij,njkd->nikrd", p.astype(v.dtype), v).reshape(n, s, h, d)
