"""Ranked lists: what a rank is worth, and where a list ends.

Along the last axis stand the ranks, the best first; in formulas they count from 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core import units
from grpo_jax.names import one_of
from grpo_jax.types import Batch, Rollouts

REWARDS = ("hit", "dcg", "decay")


def check(reward: str) -> None:
  """Raises UserError for a name that is not in REWARDS."""
  one_of("reward", reward, REWARDS)


def discounts(size: int, dtype=jnp.float32) -> Float[Array, " K"]:
  """1 / log2(k + 1), k = 1..K."""
  return 1 / jnp.log2(jnp.arange(2, size + 2, dtype=dtype))


def rank_rewards(
  rel: Float[Array, "*list K"], reward: str = "hit", gamma: float = 2.0
) -> Float[Array, "*list K"]:
  """What rank k is given for a list of relevances; nothing that stands before k is in it.

  hit    rel_k
  dcg    sum_{j>=k} rel_j / log2(j + 1)
  decay  sum_{j>=k} rel_j / gamma^(j - k); gamma -> infinity is "hit", the paper's exp-infinity
  """
  check(reward)
  if reward == "hit":
    return rel
  k = jnp.arange(rel.shape[-1])
  ahead = (k[None, :] - k[:, None]).astype(rel.dtype)  # [k, j]: j - k
  share = jnp.where(ahead >= 0, gamma ** -jnp.maximum(ahead, 0), 0)
  if reward == "dcg":
    share = jnp.where(ahead >= 0, discounts(rel.shape[-1], rel.dtype)[None, :], 0)
  share = share.reshape((1,) * (rel.ndim - 1) + share.shape)
  return jnp.sum(rel[..., None, :] * share, axis=-1)


def end_tokens(batch: Batch, rollouts: Rollouts) -> Bool[Array, "R T"]:
  """True at the stop token of each rollout that was not truncated: its last trained token."""
  stopped = (~rollouts.truncated).astype(batch.mask.dtype)
  return units.is_last(batch) & (units.spread(units.of_owner(stopped, batch), batch) > 0)
