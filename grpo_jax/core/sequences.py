"""A rollout as one sequence, whatever units it is cut into.

  position        i32[R, T]               place of a token among the trained tokens of its rollout
  sum_of_rollout  f32[R, T] -> f32[R, T]  sum over the rollout's trained tokens, on each of them
  side_by_side    [R, T] -> [N, G, T]     the rollouts of a prompt under each other
  back            [N, G, T] -> [R, T]     and back

A rollout has to lie in one row, its trained tokens in one stretch (the mask may have holes in it);
several rollouts may share a row. Off the mask all results are 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from grpo_jax.core import units
from grpo_jax.types import Batch, Rollouts


def position(batch: Batch) -> Int[Array, "R T"]:
  """0 at the first trained token of a rollout, 1 at the next, and so on."""
  owner = units.token_owner(batch)

  def step(last, now):
    previous, count = last
    here = jnp.where(now == previous, count, 0)
    on = now >= 0
    return (jnp.where(on, now, previous), jnp.where(on, here + 1, count)), jnp.where(on, here, 0)

  none = jnp.full(owner.shape[0], -1, owner.dtype)
  _, at = jax.lax.scan(step, (none, jnp.zeros_like(none)), owner.T)
  return at.T


def sum_of_rollout(x: Float[Array, "R T"], batch: Batch) -> Float[Array, "R T"]:
  """sum_t x_t over the trained tokens of the token's rollout."""
  total = units.pool_sum(x, batch)
  if total.shape[1] > 1:
    same = batch.owner[:, :, None] == batch.owner[:, None, :]
    total = jnp.sum(jnp.where(same, total[:, None, :], 0), axis=2)
  return units.spread(total, batch)


def side_by_side(
  x: Shaped[Array, "R T"], at: Int[Array, "R T"], batch: Batch, rollouts: Rollouts
) -> Shaped[Array, "N G T"]:
  """out[i, j, at] = x of the token with that place in rollout (i, j); 0 where there is none.

  `at` is `position`, or the place counted from the end. The one step that joins rows: one
  all-reduce of N G T numbers.
  """
  n, g = rollouts.reward.shape
  index = _index(at, batch)
  size = n * g * at.shape[1]
  index = jnp.where(index < 0, size, index)  # out of range: dropped
  x = jnp.where(batch.mask > 0, x, 0)
  out = jnp.zeros(size, x.dtype).at[index.reshape(-1)].add(x.reshape(-1), mode="drop")
  return out.reshape(n, g, at.shape[1])


def back(x: Shaped[Array, "N G T"], at: Int[Array, "R T"], batch: Batch) -> Shaped[Array, "R T"]:
  """What `side_by_side` with the same `at` has put at [i, j, at], at each token."""
  index = _index(at, batch)
  return jnp.where(index < 0, jnp.zeros_like(x, shape=()), x.reshape(-1)[jnp.maximum(index, 0)])


def _index(at, batch):
  """Flat index into [N, G, T], -1 off the mask."""
  owner = units.token_owner(batch)
  return jnp.where(owner < 0, -1, owner * at.shape[1] + at)
