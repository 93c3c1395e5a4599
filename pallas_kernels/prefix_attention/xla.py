"""Plain XLA: the prompt's keys and values are read once a group and never repeated.

A completion's query attends to two parts, the shared prompt and its own tokens. Both softmaxes
are kept unnormalised under one common maximum and divided once, which is the exact log-sum-exp
merge of paper 59.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.prefix_attention.ranges import run_start

_LOW = -1e30  # finite, so that a row with nothing to see gives 0 and not NaN
# A prompt's queries go block by block, over the keys that they can see: a third to a half of the
# scores of a long prompt are never made. More blocks save little more and take longer to compile.
_BLOCK, _MOST_BLOCKS = 128, 8


def _heads_first(q: Float[Array, "N X H d"], kv: int) -> Float[Array, "N K Y d"]:
  """[N, X, H, d] -> [N, K, rep * X, d]: the queries that share a key head, as one matrix."""
  n, x, h, d = q.shape
  return q.reshape(n, x, kv, h // kv, d).transpose(0, 2, 3, 1, 4).reshape(n, kv, -1, d)


def _heads_last(o: Float[Array, "N K Y d"], x: int) -> Float[Array, "N X H d"]:
  n, kv, y, d = o.shape
  return o.reshape(n, kv, y // x, x, d).transpose(0, 3, 1, 2, 4).reshape(n, x, -1, d)


def _zero_unless(live: Bool[Array, "N X"], *arrays: Float[Array, "N X ..."]) -> tuple[Array, ...]:
  return tuple(jnp.where(live.reshape(*live.shape, *[1] * (a.ndim - 2)), a, 0) for a in arrays)


def _scores(q, k, mask, softcap=None):
  """Masked scaled scores in float32; `mask` broadcasts against them."""
  s = _products(q, k)
  s = s * q.shape[-1] ** -0.5
  return jnp.where(mask, s if softcap is None else softcap * jnp.tanh(s / softcap), _LOW)


def _weigh(p, v):
  return _mixture(p.astype(v.dtype), v)


@jax.custom_vjp
def _products(q: Float[Array, "... q d"], k: Float[Array, "... k d"]) -> Float[Array, "... q k"]:
  """q k^T in float32. Its backward pass differs from the automatic one in order only: for dk the
  narrow q is transposed and not the wide score (as in models/decoder.py: linear)."""
  return jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)


def _products_backward(saved, ct):
  q, k = saved
  ct = ct.astype(q.dtype)
  dq = jnp.einsum("...qk,...kd->...qd", ct, k, preferred_element_type=jnp.float32)
  dk = jnp.einsum("...qd,...qk->...dk", q, ct, preferred_element_type=jnp.float32)
  return dq.astype(q.dtype), dk.swapaxes(-1, -2).astype(k.dtype)


_products.defvjp(lambda q, k: (_products(q, k), (q, k)), _products_backward)


@jax.custom_vjp
def _mixture(p: Float[Array, "... q k"], v: Float[Array, "... k d"]) -> Float[Array, "... q d"]:
  """p v in float32; backward as in `_products`."""
  return jnp.einsum("...qk,...kd->...qd", p, v, preferred_element_type=jnp.float32)


def _mixture_backward(saved, ct):
  p, v = saved
  ct = ct.astype(v.dtype)
  dp = jnp.einsum("...qd,...kd->...qk", ct, v, preferred_element_type=jnp.float32)
  dv = jnp.einsum("...qd,...qk->...dk", ct, p, preferred_element_type=jnp.float32)
  return dp.astype(p.dtype), dv.swapaxes(-1, -2).astype(v.dtype)


_mixture.defvjp(lambda p, v: (_mixture(p, v), (p, v)), _mixture_backward)


def _prompt(
  q: Float[Array, "N P H d"],
  k: Float[Array, "N M K d"],
  v: Float[Array, "N M K d"],
  key_length: Int[Array, " N"],
  window: int | None,
  softcap: float | None,
  sink: bool,
) -> Float[Array, "N P H d"]:
  """Causal attention of prompts padded on the right, the last P of their M >= P keys being own."""
  p, m = q.shape[1], k.shape[1]
  valid = jnp.arange(m)[None] < key_length[:, None]
  (q,) = _zero_unless(valid[:, m - p :], q)
  k, v = (a.transpose(0, 2, 1, 3) for a in _zero_unless(valid, k, v))
  size = max(_BLOCK, -(-p // _MOST_BLOCKS))
  out = []
  for first in range(0, p, size):
    last = min(first + size, p)
    behind, ahead = 0 if window is None else max(0, m - p + first - window + 1), m - p + last
    rows = jnp.arange(m - p + first, ahead)
    seen = slice(behind, ahead)
    part = k[:, :, seen], v[:, :, seen], valid[:, seen], jnp.arange(behind, ahead)
    out.append(_causal(q[:, first:last], *part, rows, window, softcap, sink))
  out = out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)
  return _zero_unless(valid[:, m - p :], out)[0].astype(q.dtype)


def _causal(q, k, v, valid, column, row, window, softcap, sink) -> Float[Array, "N B H d"]:
  """A block of the prompt's queries, at the places `row`, over the keys at the places `column`."""
  kv, count = k.shape[1], q.shape[1]
  column, row = column[None], jnp.tile(row, q.shape[2] // kv)[:, None]
  mask = column <= row
  if window is not None:
    mask = mask & (row - column < window)
  mask = mask[None, None] & valid[:, None, None, :]
  score = _scores(_heads_first(q, kv), k, mask, softcap)
  top = jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
  top = jnp.maximum(top, 0) if sink else top
  weight = jnp.exp(score - top)
  total = jnp.sum(weight, axis=-1)[..., None]
  out = _weigh(weight, v) / (total + jnp.exp(-top) if sink else total)
  return _heads_last(out, count)


def _two_part(q, k_prefix, v_prefix, prefix_mask, k, v, own_mask, softcap, sink):
  """q [N, K, G, Y, d]; prompt [N, K, P, d] seen where `prefix_mask` [N, 1, 1 or G * Y, P]; own
  [N, K, G, C, d]."""
  n, kv, g, y, d = q.shape
  score = _scores(q.reshape(n, kv, g * y, d), k_prefix, prefix_mask, softcap)
  score_own = _scores(q, k, own_mask, softcap)

  def flat(a):  # own part -> leading shape of the prompt part; each keeps the matmul that suits it
    return a.reshape(n, kv, g * y, *a.shape[4:])

  top = jnp.maximum(jnp.max(score, axis=-1), flat(jnp.max(score_own, axis=-1)))
  top = jax.lax.stop_gradient(jnp.maximum(top, 0) if sink else top)
  weight = jnp.exp(score - top[..., None])
  weight_own = jnp.exp(score_own - top.reshape(n, kv, g, y)[..., None])
  total = jnp.sum(weight, axis=-1) + flat(jnp.sum(weight_own, axis=-1))
  total = total + jnp.exp(-top) if sink else total
  out = _weigh(weight, v_prefix) + flat(_weigh(weight_own, v))
  return (out / total[..., None]).reshape(n, kv, g, y, d)


def _completions(
  q: Float[Array, "N G T H d"],
  k_prefix: Float[Array, "N P K d"],
  v_prefix: Float[Array, "N P K d"],
  prefix_length: Int[Array, " N"],
  k: Float[Array, "N G T K d"],
  v: Float[Array, "N G T K d"],
  segment: Int[Array, "N T"] | None,
  window: int | None,
  softcap: float | None,
  sink: bool,
) -> Float[Array, "N G T H d"]:
  """Completions attend to the whole shared prompt and causally to themselves.

  With `segment` (then G = 1), the T tokens are several completions, told apart by their ids.
  """
  n, g, t, h, d = q.shape
  kv, rep = k.shape[3], h // k.shape[3]
  valid = jnp.arange(k_prefix.shape[1])[None] < prefix_length[:, None]
  k_prefix, v_prefix = (a.transpose(0, 2, 1, 3) for a in _zero_unless(valid, k_prefix, v_prefix))
  q = q.reshape(n, g, t, kv, rep, d).transpose(0, 3, 1, 4, 2, 5).reshape(n, kv, g, rep * t, d)
  k, v = (a.transpose(0, 3, 1, 2, 4) for a in (k, v))
  mask = jnp.tril(jnp.ones((t, t), bool))
  if window is not None:
    mask = mask & ~jnp.tril(jnp.ones((t, t), bool), -window)
  mask = mask[None, None]
  if segment is not None:
    mask = mask & (segment[:, :, None] == segment[:, None, :])[:, None]
  mask = jnp.tile(mask, (1, 1, rep, 1))[:, None]
  prefix_mask = valid[:, None, None, :]
  if window is not None:
    own = jnp.arange(t)[None] if segment is None else jnp.arange(t)[None] - run_start(segment)
    nearest = prefix_length[:, None] + own - window  # the last key that is too old
    seen = jnp.arange(valid.shape[1])[None, None, :] > nearest[:, :, None]  # [N, T, P]
    prefix_mask = prefix_mask & jnp.tile(seen, (1, g * rep, 1))[:, None]
  out = _two_part(q, k_prefix, v_prefix, prefix_mask, k, v, mask, softcap, sink)
  out = out.reshape(n, kv, g, rep, t, d).transpose(0, 2, 4, 1, 3, 5)
  return out.reshape(n, g, t, h, d).astype(q.dtype)


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
  """As `reference.prefix_attention`, the prompt's part and the completions' part apart."""
  del blocks
  n, s, h, d = q.shape
  p, t = num_prefix, (s - num_prefix) // group
  m = k.shape[1] - (s - p)  # keys of the whole prefix
  options = window, softcap, sink
  out = _prompt(q[:, :p], k[:, :m], v[:, :m], prefix_length, *options)
  if not t:
    return out
  own = tuple(a[:, a.shape[1] - group * t :] for a in (q, k, v))
  if segment is not None:
    own = _zero_unless(segment >= 0, *own)
  q_own, k_own, v_own = (a.reshape(n, group, t, a.shape[2], d) for a in own)
  suffix = _completions(
    q_own, k[:, :m], v[:, :m], prefix_length, k_own, v_own, segment, *options
  ).reshape(n, group * t, h, d)
  if segment is not None:
    (suffix,) = _zero_unless(segment >= 0, suffix)
  return jnp.concatenate([out, suffix], axis=1)


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
  """As `reference.decode_attention`; what is not seen must hold finite numbers all the same."""
  del blocks
  n, s, a, h, d = q.shape
  kv, rep = k.shape[1], h // k.shape[1]
  valid = jnp.arange(k_prefix.shape[2])[None] < prefix_length[:, None]
  q = q.reshape(n, s, a, kv, rep, d).transpose(0, 3, 1, 4, 2, 5).reshape(n, kv, s, rep * a, d)
  mask = visible if a == 1 else jnp.tile(visible, (1, 1, rep, 1))
  out = _two_part(
    q, k_prefix, v_prefix, valid[:, None, None, :], k, v, mask[:, None], softcap, sink
  )
  out = out.reshape(n, kv, s, rep, a, d).transpose(0, 2, 4, 1, 3, 5)
  return out.reshape(n, s, a, h, d).astype(q.dtype)
