"""Choosing a token from logits: exact inverse-CDF sampling from one uniform number a row."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Choice:
  """temperature 0 is greedy. Greedy, top_k and top_p are for evaluation: training with them would
  need the behaviour policy's renormalised probabilities, so `check_trainable` refuses them."""

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def check_trainable(self) -> str | None:
    """Why these settings cannot be trained on, or None."""
    if self.temperature <= 0:
      return f"temperature={self.temperature}: greedy choice is not a policy; use a value above 0"
    if self.top_k or self.top_p < 1:
      return (
        f"top_k={self.top_k}, top_p={self.top_p}: the trained log-probabilities would not be "
        "those sampled from; use them under eval only"
      )
    return None


def truncate(logits: Float[Array, "X V"], top_k: int, top_p: float) -> Float[Array, "X V"]:
  """-inf outside the k likeliest tokens and outside the smallest set of mass >= top_p."""
  if top_k:
    kept = jax.lax.top_k(logits, top_k)[0][:, -1:]
    logits = jnp.where(logits < kept, -jnp.inf, logits)
  if top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    p = jax.nn.softmax(ordered, axis=-1)
    needed = jnp.cumsum(p, axis=-1) - p < top_p  # the mass before the token is still short
    least = jnp.min(jnp.where(needed, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def _first_above(mass: Float[Array, "X B"], goal: Float[Array, " X"]):
  """Index of the first entry whose running sum exceeds `goal`, and the sum before it.

  Never an entry of zero mass: where rounding leaves no such entry, the last positive one.
  """
  running = jnp.cumsum(mass, axis=-1)
  above = (running > goal[:, None]) & (mass > 0)  # `goal` may be rounded to below 0
  last = mass.shape[-1] - 1 - jnp.argmax(mass[:, ::-1] > 0, axis=-1)
  index = jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)
  before = jnp.take_along_axis(running - mass, index[:, None], axis=-1)[:, 0]
  return index, before


def inverse_cdf(logits: Float[Array, "X V"], uniform: Float[Array, " X"]) -> Int[Array, " X"]:
  """The token whose interval of the softmax's running sum contains `uniform` in [0, 1).

  In two levels, blocks and then tokens inside one, so that no running sum goes over V. One draw a
  row where Gumbel noise needs V.
  """
  x, v = logits.shape
  weight = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  if v <= _BLOCK:
    return _first_above(weight, uniform * jnp.sum(weight, axis=-1))[0].astype(jnp.int32)
  weight = jnp.pad(weight, ((0, 0), (0, -v % _BLOCK))).reshape(x, -1, _BLOCK)
  mass = jnp.sum(weight, axis=-1)
  goal = uniform * jnp.sum(mass, axis=-1)
  block, before = _first_above(mass, goal)
  inside = jnp.take_along_axis(weight, block[:, None, None], axis=1)[:, 0]
  token, _ = _first_above(inside, goal - before)
  return (block * _BLOCK + token).astype(jnp.int32)


def choose(
  logits: Float[Array, "X V"], uniform: Float[Array, " X"], choice: Choice
) -> Int[Array, " X"]:
  """One token a row from logits that were already divided by the temperature."""
  if choice.temperature <= 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return inverse_cdf(truncate(logits, choice.top_k, choice.top_p), uniform)
