"""The normalizer of pi exp(r / tau), estimated on the samples of a group."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core import groups


def center_by_log_z(
  reward: Float[Array, "N G"], alive: Bool[Array, "N G"], tau: float
) -> Float[Array, "N G"]:
  """r_i - tau log mean_j exp(r_j / tau), over the alive of the group; exactly 0 if all are equal.

  Its limit for tau -> infinity is `groups.center`. What is not alive gets 0.
  """
  informative = alive & ~groups.all_equal(reward, alive)
  scaled = jnp.where(informative, reward, 0) / tau
  number = jnp.maximum(groups.count(alive), 1).astype(reward.dtype)
  total = jax.nn.logsumexp(scaled, axis=1, keepdims=True, where=informative)
  log_z = total - jnp.log(number)
  return jnp.where(informative, tau * (scaled - log_z), 0)
