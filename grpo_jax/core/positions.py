"""Baselines by token position, as some released code has them: only to replicate it.

The same position of two completions is seldom the same point in them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core import groups, units
from grpo_jax.errors import UserError
from grpo_jax.types import Batch, Rollouts


def centered_returns(
  reward: Float[Array, "R U"], batch: Batch, rollouts: Rollouts
) -> Float[Array, "R T"]:
  """Sum of the rewards from a token on, minus its mean over the group at the same column.

  The reward of a unit comes with its last trained token. A column of a rollout counts up to the
  rollout's last trained token, tokens between turns included. One rollout a row, at its start.
  """
  n, g = rollouts.reward.shape
  if batch.tokens.shape[0] != n * g:
    raise UserError("a baseline by token position needs one rollout a row; set score.pack to False")
  unit = jnp.broadcast_to(jnp.arange(reward.shape[1], dtype=jnp.int32)[None], reward.shape)
  ends = units.is_last(batch.replace(owner=unit))
  coming = _sum_from(jnp.where(ends, units.spread(reward, batch), 0))
  inside = _sum_from(batch.mask) > 0
  by_rollout = lambda x: jax.ops.segment_sum(x, batch.owner[:, 0], n * g).reshape(n, g, -1)
  valid = (by_rollout(inside.astype(jnp.int32)) > 0) & rollouts.alive[:, :, None]
  centered = groups.center(by_rollout(coming), valid)
  return units.masked(centered.reshape(n * g, -1)[batch.owner[:, 0]], batch)


def _sum_from(x):
  """Along a row, from each token to the end."""
  return jnp.flip(jnp.cumsum(jnp.flip(x, axis=1), axis=1), axis=1)
