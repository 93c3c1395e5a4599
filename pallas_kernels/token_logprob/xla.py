"""Plain XLA in chunks of tokens: the [X, V] table of logits exists for one chunk at a time, in the
forward pass and, recomputed, in the backward pass. So the memory is flat in the number of tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.token_logprob.pieces import TokenLogprob


def from_logits(logits: Float[Array, "X V"], target: Int[Array, " X"]) -> TokenLogprob:
  """The one definition that sampler and trainer share; logits are float32 and already divided
  by the temperature. Entropy in nats: log Z - sum_v p_v z_v."""
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  shifted = logits - top[:, None]
  weight = jnp.exp(shifted)
  total = jnp.sum(weight, axis=-1)
  log_total = jnp.log(total)
  picked = jnp.take_along_axis(shifted, target[:, None], axis=-1)[:, 0]
  mean = jnp.sum(weight * shifted, axis=-1) / total
  return TokenLogprob(picked - log_total, log_total - mean, top + log_total)


def _chunk(hidden, head, target, temperature):
  logits = jnp.einsum("xd,vd->xv", hidden, head, preferred_element_type=jnp.float32)
  return from_logits(logits / temperature, target)


@functools.partial(jax.jit, static_argnames=("chunk", "strided"))
def token_logprob(hidden, head, target, temperature, *, chunk, strided):
  x = hidden.shape[0]
  if not chunk or chunk >= x:
    return _chunk(hidden, head, target, temperature)
  pieces = -(-x // chunk)
  chunk = -(-x // pieces)  # even pieces: the least padding
  pad = pieces * chunk - x
  shape = (chunk, pieces) if strided else (pieces, chunk)
  turn = lambda a: a.swapaxes(0, 1) if strided else a
  hidden = turn(jnp.pad(hidden, ((0, pad), (0, 0))).reshape(*shape, -1))
  target = turn(jnp.pad(target, (0, pad)).reshape(shape))
  piece = jax.checkpoint(lambda h, t: _chunk(h, head, t, temperature))
  out = jax.lax.map(lambda a: piece(*a), (hidden, target))
  return TokenLogprob(*(turn(a).reshape(-1)[:x] for a in out))
