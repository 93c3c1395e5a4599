"""Completions cut into segments, and what each segment is worth by values at the cuts.

"Segment Policy Optimization", 2025 (SPO-chain); also values that any other estimator made.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core import grids
from grpo_jax.types import Batch, Rollouts


def cut_points(
  unsure: Bool[Array, "R T"], mask: Float[Array, "R T"], interval: int
) -> Int[Array, "R T"]:
  """The unit of every token: how many cuts stand at or before it.

  The cuts are the 1st, (interval + 1)-th, ... trained token that is `unsure`; the state at a cut is
  the prefix before that token. Unit 0 is what stands before the first cut: it has no value, and it
  does not exist where the first token is a cut. At most 1 + ceil(T / interval) units.
  """
  unsure = (unsure & (mask > 0)).astype(jnp.int32)
  return (jnp.cumsum(unsure, axis=1) + interval - 1) // interval


def advantage(value: Float[Array, "R U"], batch: Batch, rollouts: Rollouts) -> Float[Array, "R U"]:
  """V(start of the next segment) - V(start of this one); after the last segment the reward.

  NaN is a value that was not estimated: a segment that starts or ends there gets 0.
  """
  size = batch.unit_mask.shape[1]
  start = grids.to_grid(value, batch, rollouts, size)
  there = grids.exists(batch, rollouts, size)
  gain = grids.following(start, there, rollouts.reward) - start
  return grids.to_units(jnp.where(there & ~jnp.isnan(gain), gain, 0), batch)
