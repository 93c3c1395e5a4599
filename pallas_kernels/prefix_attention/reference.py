"""The specification: one dense masked softmax over the row [prompt; completion 1; ...; G]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def _attend(q, k, v, mask, softcap, sink):
  """q [..., i, d], k and v [..., j, d], mask [..., i, j]; a query that sees nothing gives 0.

  NaN in keys and values that no query sees has no effect.
  """
  seen = jnp.any(mask, axis=-2)[..., None]
  k, v = jnp.where(seen, k, 0), jnp.where(seen, v, 0)
  score = jnp.einsum("...id,...jd->...ij", q, k, preferred_element_type=jnp.float32)
  score = score * q.shape[-1] ** -0.5
  if softcap is not None:
    score = softcap * jnp.tanh(score / softcap)
  top = jnp.max(jnp.where(mask, score, -jnp.inf), axis=-1, keepdims=True)
  top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))  # -inf: nothing seen
  if sink:
    top = jnp.maximum(top, 0)
  weight = jnp.where(mask, jnp.exp(jnp.where(mask, score - top, 0)), 0)
  total = jnp.sum(weight, axis=-1, keepdims=True)
  total = total + jnp.exp(-top) if sink else jnp.where(total > 0, total, 1)
  weight = (weight / total).astype(v.dtype)
  out = jnp.einsum("...ij,...jd->...id", weight, v, preferred_element_type=jnp.float32)
  return out.astype(q.dtype)


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
  blocks: object = None,
) -> Float[Array, "N S H d"]:
  """softmax(q k^T / sqrt(d)) v with the mask of paper 59, every score formed.

  S = num_prefix + X: a prompt padded on the right to `num_prefix`, then X completion tokens.
  Keys may begin with M - S more, of a text before the prompt; `prefix_length` counts those too.
  Query i sees key j if j is a valid prefix key at or before i (any completion sees the whole
  prefix), or j is in the completion of i at or before i; with `window`, only if
  position(i) - position(j) < window. Position of prefix key j: j; of the token t of a completion:
  prefix_length + t. Padding is what lies in the prompt beyond `prefix_length` and what has
  segment < 0: nobody sees it, and its outputs and gradients are 0 whatever it holds.
  """
  del blocks
  n, s, h, d = q.shape
  kv, m = k.shape[2], k.shape[1]
  x = s - num_prefix
  prefix = m - x
  if segment is None:
    segment = jnp.broadcast_to((jnp.arange(x) // max(x // group, 1))[None], (n, x))
  same = segment[:, :, None] == segment[:, None, :]
  same = same & (jnp.arange(x)[None, :] <= jnp.arange(x)[:, None])[None]  # [N, X, X]
  own = prefix_length[:, None] + jnp.sum(same, axis=-1, dtype=prefix_length.dtype) - 1

  first = jnp.arange(prefix, dtype=prefix_length.dtype)[None]
  position = jnp.concatenate([jnp.broadcast_to(first, (n, prefix)), own], axis=1)  # of keys
  live = jnp.concatenate([first < prefix_length[:, None], segment >= 0], axis=1)
  before = (jnp.arange(m)[None, :] <= jnp.arange(m - s, m)[:, None])[None]
  mask = jnp.concatenate(
    [
      jnp.broadcast_to(before[:, :, :prefix], (n, s, prefix)),
      jnp.concatenate([jnp.zeros((n, num_prefix, x), bool), same], axis=1),
    ],
    axis=2,
  )
  if window is not None:
    mask = mask & (position[:, m - s :, None] - position[:, None, :] < window)
  mask = mask & live[:, m - s :, None] & live[:, None, :]

  dead = ~live[:, m - s :, None, None]
  rows = jnp.where(dead, 0, q).reshape(n, s, kv, h // kv, d).transpose(0, 2, 3, 1, 4)
  keys, values = (a.transpose(0, 2, 1, 3)[:, :, None] for a in (k, v))
  out = _attend(rows, keys, values, mask[:, None, None], softcap, sink)
  return jnp.where(dead, 0, out.transpose(0, 3, 1, 2, 4).reshape(n, s, h, d))


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
  blocks: object = None,
) -> Float[Array, "N S Q H d"]:
  """The prefix cache repeated for every slot, then one softmax over [prefix; own columns].

  A query sees prefix keys below `prefix_length` and the columns of its slot where `visible`.
  """
  del blocks
  n, s, a, h, d = q.shape
  kv, p = k_prefix.shape[1], k_prefix.shape[2]
  shared = jnp.arange(p)[None] < prefix_length[:, None]
  mask = jnp.broadcast_to(shared[:, None, None], (n, s, a, p))
  mask = jnp.concatenate([mask, visible], axis=-1)[:, None, :, None]  # [N, 1, S, 1, Q, P + C]
  both = ((k_prefix, k), (v_prefix, v))
  keys, values = (
    jnp.concatenate([jnp.broadcast_to(x[:, :, None], (n, kv, s, p, d)), own], axis=3)[:, :, :, None]
    for x, own in both
  )
  rows = q.reshape(n, s, a, kv, h // kv, d).transpose(0, 3, 1, 4, 2, 5)
  out = _attend(rows, keys, values, mask, softcap, sink)
  return out.transpose(0, 2, 4, 1, 3, 5).reshape(n, s, a, h, d)
