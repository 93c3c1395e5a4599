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
    k: Float[Array, "N P K d"],
    v: Float[Array, "N P K d"],
    prefix_length: Int[Array, " N"],
) -> Float[Array, "N P H d"]:
  """Causal self-attention of right-padded prompts."""
  p, kv = q.shape[1], k.shape[2]
  valid = jnp.arange(p)[None] < prefix_length[:, None]  # [N, P]
  k, v = (jnp.where(valid[:, :, None, None], a, 0).transpose(0, 2, 1, 3) for a in (k, v))
  rep = q.shape[2] // kv
  row = jnp.tile(jnp.arange(p), rep)
  mask = (jnp.arange(p)[None] <= row[:, None])[None, None] & valid[:, None, None, :]
  score = _scores(_heads_first(q, kv), k, mask)
  weight = jnp.exp(score - jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True)))
  out = _weigh(weight, v) / jnp.sum(weight, axis=-1)[..., None]
  return _heads_last(out, p).astype(q.dtype)


def _merge(score_prefix, v_prefix, score_own, v_own, own_to_prefix):
  """Softmax over two sets of keys. `own_to_prefix` reshapes own-part arrays to the prefix part's
  leading shape, so that each matmul keeps the batch shape that suits it."""
  top = jnp.maximum(
      jnp.max(score_prefix, axis=-1), own_to_prefix(jnp.max(score_own, axis=-1)))
  top = jax.lax.stop_gradient(top)
  e_prefix = jnp.exp(score_prefix - top[..., None])
  e_own = jnp.exp(score_own - top.reshape(score_own.shape[:-1])[..., None])
  total = jnp.sum(e_prefix, axis=-1) + own_to_prefix(jnp.sum(e_own, axis=-1))
  out = _weigh(e_prefix, v_prefix) + own_to_prefix(_weigh(e_own, v_own))
  return out / total[..., None]


def completion_attention(
    q: Float[Array, "N G T H d"],
    k_prefix: Float[Array, "N P K d"],
    v_prefix: Float[Array, "N P K d"],
    prefix_length: Int[Array, " N"],
    k: Float[Array, "N G T K d"],
    v: Float[Array, "N G T K d"],
) -> Float[Array, "N G T H d"]:
  """Completions attend to the whole shared prompt and causally to themselves."""
  n, g, t, h, d = q.shape
  kv, rep = k.shape[3], h // k.shape[3]
  valid = jnp.arange(k_prefix.shape[1])[None] < prefix_length[:, None]
  k_prefix, v_prefix = (
      jnp.where(valid[:, :, None, None], a, 0).transpose(0, 2, 1, 3) for a in (k_prefix, v_prefix))
  q = q.reshape(n, g, t, kv, rep, d).transpose(0, 3, 1, 4, 2, 5)  # [N, K, G, rep, T, d]
  k, v = (a.transpose(0, 3, 1, 2, 4) for a in (k, v))  # [N, K, G, T, d]
  score_prefix = _scores(q.reshape(n, kv, g * rep * t, d), k_prefix, valid[:, None, None, :])
  causal = jnp.tile(jnp.tril(jnp.ones((t, t), bool)), (rep, 1))[None, None, None]
  score_own = _scores(q.reshape(n, kv, g, rep * t, d), k, causal)

  def own_to_prefix(a):  # [N, K, G, rep * T, ...] -> [N, K, G * rep * T, ...]
    return a.reshape(n, kv, g * rep * t, *a.shape[4:])

  out = _merge(score_prefix, v_prefix, score_own, v, own_to_prefix)
  out = out.reshape(n, kv, g, rep, t, d).transpose(0, 2, 4, 1, 3, 5)
  return out.reshape(n, g, t, h, d).astype(q.dtype)


def decode_attention(
    q: Float[Array, "N S H d"],
    k_prefix: Float[Array, "N K P d"],
    v_prefix: Float[Array, "N K P d"],
    prefix_length: Int[Array, " N"],
    k: Float[Array, "C N S K d"],
    v: Float[Array, "C N S K d"],
    visible: Bool[Array, "N S C"],
) -> Float[Array, "N S H d"]:
  """One query a slot: S slots share a prompt, each has its own C cached columns.

  The own part is a multiply and a sum, not a batch of one-row matmuls: it is bound by reading
  the cache, and columns lead so that writing one is a contiguous block.
  """
  n, s, h, d = q.shape
  kv, rep = k.shape[3], h // k.shape[3]
  valid = jnp.arange(k_prefix.shape[2])[None] < prefix_length[:, None]
  score_prefix = _scores(_heads_first(q, kv), k_prefix, valid[:, None, None, :])  # [N, K, rep*S, P]
  q_own = q.reshape(n, s, kv, rep, d)
  score_own = jnp.sum(q_own[None] * k[:, :, :, :, None], axis=-1, dtype=jnp.float32)
  mask = visible.transpose(2, 0, 1)[..., None, None]
  score_own = jnp.where(mask, score_own * d**-0.5, _LOW)  # [C, N, S, K, rep]

  def to_prefix(a):  # [N, S, K, rep, ...] -> [N, K, rep * S, ...]
    order = (0, 2, 3, 1, *range(4, a.ndim))
    return a.transpose(order).reshape(n, kv, rep * s, *a.shape[4:])

  def to_own(a):  # [N, K, rep * S] -> [N, S, K, rep]
    return a.reshape(n, kv, rep, s).transpose(0, 3, 1, 2)

  top = jnp.maximum(jnp.max(score_prefix, axis=-1), to_prefix(jnp.max(score_own, axis=0)))
  e_prefix = jnp.exp(score_prefix - top[..., None])
  e_own = jnp.exp(score_own - to_own(top)[None])
  total = jnp.sum(e_prefix, axis=-1) + to_prefix(jnp.sum(e_own, axis=0))
  own = jnp.sum(e_own[..., None] * v[:, :, :, :, None].astype(jnp.float32), axis=0)
  out = (_weigh(e_prefix, v_prefix) + to_prefix(own)) / total[..., None]
  return _heads_last(out, s).astype(q.dtype)
