"""Losses of a value head, per token: f32[R, T]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def clipped_value_loss(
  value: Float[Array, "R T"],
  value_old: Float[Array, "R T"],
  target: Float[Array, "R T"],
  eps: float | None,
) -> Float[Array, "R T"]:
  """max((V - target)^2, (V_old + clip(V - V_old, -eps, eps) - target)^2); eps None: no clip.

  Not in the PPO paper, but in its released code. `value_old` and `target` are stop-gradient. Mask
  all three before (`units.masked`).
  """
  value_old, target = jax.lax.stop_gradient((value_old, target))
  plain = (value - target) ** 2
  if eps is None:
    return plain
  near = value_old + jnp.clip(value - value_old, -eps, eps)
  return jnp.maximum(plain, (near - target) ** 2)
