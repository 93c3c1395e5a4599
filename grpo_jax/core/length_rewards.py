"""Rewards for being short, f32[N, G], to be added to the reward before any group statistic."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def relative_length(
  length: Int[Array, "N G"], correct: Bool[Array, "N G"], alive: Bool[Array, "N G"]
) -> Float[Array, "N G"]:
  """lambda = 1/2 - (length - min) / (max - min) if correct, else min(0, lambda)   (Kimi k1.5).

  min and max are over the alive of the group, right and wrong together. 0 if they are equal.
  """
  size = length.astype(jnp.float32)
  high = jnp.max(jnp.where(alive, size, -jnp.inf), axis=1, keepdims=True)
  low = jnp.min(jnp.where(alive, size, jnp.inf), axis=1, keepdims=True)
  differ = high > low
  low, span = jnp.where(differ, low, 0), jnp.where(differ, high - low, 1)
  value = 0.5 - (size - low) / span
  value = jnp.where(correct, value, jnp.minimum(value, 0))
  return jnp.where(alive & differ, value, 0)
