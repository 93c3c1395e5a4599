"""Log-probability of a token and entropy, from hidden states and the output matrix.

Plain XLA in chunks of tokens: the [X, V] table of logits exists for one chunk at a time, in the
forward pass and, recomputed, in the backward pass. So the memory is flat in the number of tokens.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.token_logprob.reference import token_logprob as reference

__all__ = ["TokenLogprob", "from_logits", "reference", "token_logprob"]


class TokenLogprob(NamedTuple):
  logp: Float[Array, " X"]
  entropy: Float[Array, " X"]


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
  return TokenLogprob(picked - log_total, log_total - mean)


def _chunk(hidden, head, target, temperature):
  logits = jnp.einsum("xd,vd->xv", hidden, head, preferred_element_type=jnp.float32)
  return from_logits(logits / temperature, target)


@functools.partial(jax.jit, static_argnames=("chunk", "strided"))
def token_logprob(
  hidden: Float[Array, "X D"],
  head: Float[Array, "V D"],
  target: Int[Array, " X"],
  temperature: float | Float[Array, ""] = 1.0,
  *,
  chunk: int = 256,
  strided: bool = False,
) -> TokenLogprob:
  """log softmax(h W^T / temperature)[target] and its entropy, each [X] in float32.

  `chunk` tokens at a time, recomputed in the backward pass; chunk = 0 keeps all logits (less
  arithmetic, memory X * V). Both outputs are differentiable in `hidden` and `head`. `strided`:
  piece j takes the tokens j, j + pieces, ..., so that tokens which devices hold in blocks give
  every device its share of every piece; it costs copies of `hidden`, so only for split tokens.
  """
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
