"""Ranked lists: which entries hit, what a rank is worth, and how good the whole list is.

Along the last axis stand the ranks, the best first; in formulas they count from 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core import units
from grpo_jax.names import one_of
from grpo_jax.types import Batch, Rollouts

REWARDS = ("hit", "dcg", "decay")


def check(reward: str) -> None:
  """Raises UserError for a name that is not in REWARDS."""
  one_of("reward", reward, REWARDS)


def hits(items: Int[Array, "*list K"], wanted: Bool[Array, "*list V"]) -> Float[Array, "*list K"]:
  """1 where items[k] is an id in [0, V) that is wanted and did not stand at an earlier rank."""
  size, count = items.shape[-1], wanted.shape[-1]
  found = jnp.take_along_axis(wanted, jnp.clip(items, 0, count - 1), axis=-1)
  found &= (items >= 0) & (items < count)
  same = items[..., :, None] == items[..., None, :]
  before = jnp.tri(size, k=-1, dtype=bool).reshape((1,) * (items.ndim - 1) + (size, size))
  return (found & ~jnp.any(same & before, axis=-1)).astype(jnp.float32)


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


def recall(rel: Float[Array, "*list K"], wanted: Int[Array, "*list"], k: int) -> Array:
  """Hits among the first k / number of wanted items; 0 where none is wanted."""
  return jnp.sum(rel[..., :k], axis=-1) / jnp.maximum(wanted, 1).astype(rel.dtype)


def ndcg(rel: Float[Array, "*list K"], wanted: Int[Array, "*list"], k: int) -> Array:
  """DCG@k over that of a list that begins with all wanted items; 0 where none is wanted."""
  worth = discounts(k, rel.dtype).reshape((1,) * (rel.ndim - 1) + (k,))
  ideal = jnp.arange(k).reshape(worth.shape) < wanted[..., None]
  best = jnp.sum(jnp.where(ideal, worth, 0), axis=-1)
  found = jnp.sum(rel[..., :k] * worth[..., : rel.shape[-1]], axis=-1)
  return jnp.where(best > 0, found, 0) / jnp.where(best > 0, best, 1)


def lines(newlines: Int[Array, "R T"], mask: Float[Array, "R T"], ranks: int) -> Int[Array, "R T"]:
  """The unit of every token of a row that is one list: newline characters in earlier tokens.

  `newlines` counts those in the token itself, which belongs to the line that it ends. Lines from
  `ranks` on are one unit, with the id `ranks`.
  """
  count = jnp.where(mask > 0, newlines, 0)
  return jnp.minimum(jnp.cumsum(count, axis=1) - count, ranks)


def end_tokens(batch: Batch, rollouts: Rollouts) -> Bool[Array, "R T"]:
  """True at the stop token of each rollout that was not truncated: its last trained token."""
  stopped = (~rollouts.truncated).astype(batch.mask.dtype)
  return units.is_last(batch) & (units.spread(units.of_owner(stopped, batch), batch) > 0)
