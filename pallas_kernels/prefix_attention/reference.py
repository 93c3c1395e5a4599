"""The specification: one dense masked softmax over the row [prompt; completion 1; ...; G]."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def prefix_attention(
  q: Float[Array, "N S H d"],
  k: Float[Array, "N S K d"],
  v: Float[Array, "N S K d"],
  prefix_length: Int[Array, " N"],
  *,
  num_prefix: int,
  group: int,
) -> Float[Array, "N S H d"]:
  """softmax(q k^T / sqrt(d)) v with the mask of card 59, every score formed.

  S = num_prefix + group * T: a prompt padded on the right to `num_prefix`, then G completions of T
  tokens. Query i sees key j if j is a valid prompt token at or before i (any completion sees the
  whole prompt), or j is in the completion of i at or before i. Outputs of padded prompt
  positions are those of a query that sees the whole prompt before it: finite, and not to be used.
  """
  n, s, h, d = q.shape
  kv = k.shape[2]
  t = (s - num_prefix) // group
  index = jnp.arange(s)
  in_prefix = index < num_prefix
  owner = jnp.where(in_prefix, -1, (index - num_prefix) // max(t, 1))
  causal = index[None, :] <= index[:, None]
  valid = (index[None] < prefix_length[:, None]) | ~in_prefix[None]  # [N, S]
  sees = causal & (in_prefix[None, :] | (owner[None, :] == owner[:, None]))  # [S, S]
  mask = sees[None] & valid[:, None, :]
  k, v = (jnp.where(valid[:, :, None, None], a, 0) for a in (k, v))
  q = q.reshape(n, s, kv, h // kv, d)
  score = jnp.einsum("nikrd,njkd->nkrij", q, k).astype(jnp.float32) * d**-0.5
  score = jnp.where(mask[:, None, None], score, -jnp.inf)
  p = jnp.exp(score - jnp.max(score, axis=-1, keepdims=True))
  p = p / jnp.sum(p, axis=-1, keepdims=True)
  return jnp.einsum("nkrij,njkd->nikrd", p.astype(v.dtype), v).reshape(n, s, h, d)
