"""Which problems the fused loop draws, and how many of the rows it gets teach nothing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.types import Batch


def idle(adv: Float[Array, "R T"], batch: Batch) -> Float[Array, ""]:
  """The share of rows with trained tokens that have no advantage other than 0."""
  trained = jnp.any(batch.mask > 0, axis=1)
  nothing = trained & ~jnp.any((adv != 0) & (batch.mask > 0), axis=1)
  count = lambda x: jnp.sum(x, dtype=jnp.float32)
  return count(nothing) / jnp.maximum(count(trained), 1)


def choose_problems(key, count: int, size: int, weights=None) -> Int[Array, " size"]:
  """Ids of `size` different problems: uniformly, or by weights (without replacement)."""
  noise = jax.random.gumbel(key, (count,))
  if weights is not None:
    positive = weights > 0
    noise = jnp.where(positive, noise + jnp.log(jnp.where(positive, weights, 1)), noise - 1e9)
  return jax.lax.top_k(noise, size)[1].astype(jnp.int32)
