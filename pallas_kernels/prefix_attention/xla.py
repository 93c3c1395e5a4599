"""Plain XLA: the prompt's keys and values are read once a group and never repeated.

A completion's query attends to two parts, the shared prompt and its own tokens. Both softmaxes
are kept unnormalised under one common maximum and divided once, which is the exact log-sum-exp
merge of card 59.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_LOW = -1e30  # finite, so that a row with nothing to see gives 0 and not NaN


def _heads_first(q: Float[Array, "N X H d"], kv: int) -> Float[Array, "N K Y d"]:
  """[N, X, H, d] -> [N, K, rep * X, d]: the queries that share a key head, as one matrix."""
  n, x, h, d = q.shape
  return q.reshape(n, x, kv, h // kv, d).transpose(0, 2, 3, 1, 4).reshape(n, kv, -1, d)


def _heads_last(o: Float[Array, "N K Y d"], x: int) -> Float[Array, "N X H d"]:
  n, kv, y, d = o.shape
  return o.reshape(n, kv, y // x, x, d).transpose(0, 3, 1, 2, 4).reshape(n, x, -1, d)


def _scores(q, k, mask):
  """Masked scaled scores in float32; `mask` broadcasts against them."""
  s = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
  return jnp.where(mask, s * q.shape[-1] ** -0.5, _LOW)


def _weigh(p, v):
  return jnp.einsum("...qk,...kd->...qd", p.astype(v.dtype), v, preferred_element_type=jnp.float32)


def prompt_attention(
  q: Float[Array, "N P H d"],
  k: Float[Array, "N M K d"],
  v: Float[Array, "N M K d"],
  key_length: Int[Array, " N"],
) -> Float[Array, "N P H d"]:
  """Causal attention of prompts padded on the right, the last P of their M >= P keys being own."""
  p, kv, m = q.shape[1], k.shape[2], k.shape[1]
  valid = jnp.arange(m)[None] < key_length[:, None]
  k, v = (jnp.where(valid[:, :, None, None], a, 0).transpose(0, 2, 1, 3) for a in (k, v))
  row = jnp.tile(jnp.arange(m - p, m), q.shape[2] // kv)
  mask = (jnp.arange(m)[None] <= row[:, None])[None, None] & valid[:, None, None, :]
  score = _scores(_heads_first(q, kv), k, mask)
  weight = jnp.exp(score - jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True)))
  out = _weigh(weight, v) / jnp.sum(weight, axis=-1)[..., None]
  return _heads_last(out, p).astype(q.dtype)


def _two_part(q, k_prefix, v_prefix, valid, k, v, own_mask):
  """q [N, K, G, Y, d]; prompt [N, K, P, d] seen where `valid` [N, P]; own [N, K, G, C, d]."""
  n, kv, g, y, d = q.shape
  score = _scores(q.reshape(n, kv, g * y, d), k_prefix, valid[:, None, None, :])
  score_own = _scores(q, k, own_mask)

  def flat(a):  # own part -> leading shape of the prompt part; each keeps the matmul that suits it
    return a.reshape(n, kv, g * y, *a.shape[4:])

  top = jnp.maximum(jnp.max(score, axis=-1), flat(jnp.max(score_own, axis=-1)))
  top = jax.lax.stop_gradient(top)
  weight = jnp.exp(score - top[..., None])
  weight_own = jnp.exp(score_own - top.reshape(n, kv, g, y)[..., None])
  total = jnp.sum(weight, axis=-1) + flat(jnp.sum(weight_own, axis=-1))
  out = _weigh(weight, v_prefix) + flat(_weigh(weight_own, v))
  return (out / total[..., None]).reshape(n, kv, g, y, d)


def completion_attention(
  q: Float[Array, "N G T H d"],
  k_prefix: Float[Array, "N P K d"],
  v_prefix: Float[Array, "N P K d"],
  prefix_length: Int[Array, " N"],
  k: Float[Array, "N G T K d"],
  v: Float[Array, "N G T K d"],
  segment: Int[Array, "N G T"] | None = None,
) -> Float[Array, "N G T H d"]:
  """Completions attend to the whole shared prompt and causally to themselves.

  With `segment`, the T tokens of an entry are several completions, told apart by their ids.
  """
  n, g, t, h, d = q.shape
  kv, rep = k.shape[3], h // k.shape[3]
  valid = jnp.arange(k_prefix.shape[1])[None] < prefix_length[:, None]
  k_prefix, v_prefix = (
    jnp.where(valid[:, :, None, None], a, 0).transpose(0, 2, 1, 3) for a in (k_prefix, v_prefix)
  )
  q = q.reshape(n, g, t, kv, rep, d).transpose(0, 3, 1, 4, 2, 5).reshape(n, kv, g, rep * t, d)
  k, v = (a.transpose(0, 3, 1, 2, 4) for a in (k, v))
  mask = jnp.tril(jnp.ones((t, t), bool))[None, None]
  if segment is not None:
    mask = mask & (segment[..., :, None] == segment[..., None, :])
  mask = jnp.tile(mask, (1, 1, rep, 1))[:, None]
  out = _two_part(q, k_prefix, v_prefix, valid, k, v, mask)
  out = out.reshape(n, kv, g, rep, t, d).transpose(0, 2, 4, 1, 3, 5)
  return out.reshape(n, g, t, h, d).astype(q.dtype)


def decode_attention(
  q: Float[Array, "N S H d"],
  k_prefix: Float[Array, "N K P d"],
  v_prefix: Float[Array, "N K P d"],
  prefix_length: Int[Array, " N"],
  k: Float[Array, "N K S C d"],
  v: Float[Array, "N K S C d"],
  visible: Bool[Array, "N S C"],
) -> Float[Array, "N S H d"]:
  """One query a slot: S slots share a prompt, and each has C cached columns of its own.

  Padded prompt keys and invisible columns must hold finite numbers (a cache starts as zeros).
  """
  n, s, h, d = q.shape
  kv = k.shape[1]
  valid = jnp.arange(k_prefix.shape[2])[None] < prefix_length[:, None]
  q = q.reshape(n, s, kv, h // kv, d).transpose(0, 2, 1, 3, 4)
  out = _two_part(q, k_prefix, v_prefix, valid, k, v, visible[:, None, :, None, :])
  return out.transpose(0, 2, 1, 3, 4).reshape(n, s, h, d).astype(q.dtype)
