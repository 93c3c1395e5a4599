"""Causal attention of short sequences of vectors, and the same against a cache; float32.

Sequences have some hundred tokens and heads of some ten channels, so reading and writing the scores
costs more than the products. No score is kept for the backward pass: it computes them again from
the logarithm of the softmax's denominator. Queries go block by block, and keys behind a block are
not looked at. On a CPU few rows of the batch are worked on at a time, as many as have scores that
fit the processor's cache.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BLOCK = 128  # queries
_SCORES = 2**18  # at a time, on a CPU
_LOW = -1e30


def causal(
  q: Float[Array, "N L d"], k: Float[Array, "N L d"], v: Float[Array, "N L d"]
) -> Float[Array, "N L d"]:
  """softmax(q k^T / sqrt(d)) v, where query i sees the keys 0 .. i; N is rows times heads."""
  return _causal(q * q.shape[-1] ** -0.5, k, v)


@jax.custom_vjp
def _causal(q: Float[Array, "N L d"], k: Array, v: Array) -> Float[Array, "N L d"]:
  return _causal_forward(q, k, v)[0]


def _causal_forward(q, k, v):
  out, total = _in_groups(_forward, q, k, v)
  return out, (q, k, v, out, total)


_causal.defvjp(_causal_forward, lambda saved, ct: _in_groups(_backward, *saved, ct))


def _in_groups(f, *rows: Float[Array, "N L ..."]):
  """f on few rows at a time, on a CPU."""
  count, size = rows[0].shape[:2]
  group = count
  if jax.default_backend() == "cpu":
    most = max(1, _SCORES // (size * min(size, _BLOCK)))
    group = max(n for n in range(1, min(count, most) + 1) if count % n == 0)
  if group == count:
    return f(*rows)
  split = tuple(x.reshape(count // group, group, *x.shape[1:]) for x in rows)
  out = jax.lax.map(lambda x: f(*x), split)
  return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), out)


def _blocks(size: int) -> list[tuple[slice, slice, Array]]:
  """(queries, keys that one of them sees, which ones it sees) of every block."""
  found = []
  for first in range(0, size, _BLOCK):
    end = min(first + _BLOCK, size)
    mask = jnp.arange(end)[None] <= jnp.arange(first, end)[:, None]
    found.append((slice(first, end), slice(0, end), mask[None]))
  return found


def _forward(q, k, v):
  """(output, log of the softmax's denominator [N, L, 1])."""
  out, total = [], []
  for here, seen, mask in _blocks(q.shape[1]):
    score = jnp.where(mask, _outer(q[:, here], k[:, seen]), _LOW)
    top = jnp.max(score, axis=-1, keepdims=True)
    weight = jnp.exp(score - top)
    sum_ = jnp.sum(weight, axis=-1, keepdims=True)
    out.append(_inner(weight, v[:, seen]) / sum_)
    total.append(top + jnp.log(sum_))
  return jnp.concatenate(out, axis=1), jnp.concatenate(total, axis=1)


def _backward(q, k, v, out, total, ct):
  """With p = exp(q k^T - total): dv = p^T ct and, for ds = p (ct v^T - ct . out), dq = ds k and
  dk = ds^T q."""
  mean = jnp.sum(out * ct, axis=-1, keepdims=True)
  dq, dk, dv = [], jnp.zeros_like(k), jnp.zeros_like(v)
  for here, seen, mask in _blocks(q.shape[1]):
    score = jnp.where(mask, _outer(q[:, here], k[:, seen]), _LOW)
    weight = jnp.exp(score - total[:, here])
    d_score = weight * (_outer(ct[:, here], v[:, seen]) - mean[:, here])
    dq.append(_inner(d_score, k[:, seen]))
    dk = dk.at[:, seen].add(jnp.einsum("nqk,nqd->nkd", d_score, q[:, here]))
    dv = dv.at[:, seen].add(jnp.einsum("nqk,nqd->nkd", weight, ct[:, here]))
  return jnp.concatenate(dq, axis=1), dk, dv


def _outer(a: Float[Array, "N q d"], b: Float[Array, "N k d"]) -> Float[Array, "N q k"]:
  return jnp.einsum("nqd,nkd->nqk", a, b)


def _inner(a: Float[Array, "N q k"], b: Float[Array, "N k d"]) -> Float[Array, "N q d"]:
  return jnp.einsum("nqk,nkd->nqd", a, b)


# ---- a few queries -------------------------------------------------------------------------------


def at_last(
  q: Float[Array, "N 1 d"], k: Float[Array, "N L d"], v: Float[Array, "N L d"]
) -> Float[Array, "N 1 d"]:
  """What `causal` gives at the last query."""
  return _attend(q, k, v, None)


def cached(
  q: Float[Array, "N l d"],
  k: Float[Array, "N S d"],
  v: Float[Array, "N S d"],
  length: Int[Array, ""],
) -> Float[Array, "N l d"]:
  """Queries at places length .. length + l - 1 of S. What stands behind a query's own place is not
  seen, but must be finite."""
  place = length + jnp.arange(q.shape[1], dtype=jnp.int32)
  return _attend(q, k, v, jnp.arange(k.shape[1], dtype=jnp.int32)[None] <= place[:, None])


def _attend(q, k, v, mask):
  score = _outer(q * q.shape[-1] ** -0.5, k)
  if mask is not None:
    score = jnp.where(mask[None], score, _LOW)
  return _inner(jax.nn.softmax(score, axis=-1), v)
