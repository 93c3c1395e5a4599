"""Units as a grid [N, G, K]: slot k holds the k-th unit of a rollout, wherever its row put it.

  slot              i32[R, U]                  k of every unit
  to_grid           f32[R, U]    -> f32[N, G, K]
  to_units          f32[N, G, K] -> f32[R, U]
  exists            bool[N, G, K]              there is such a unit, and its rollout is alive
  following, last                              along a rollout, from unit to unit

For methods whose units have an order: lines of a list, turns, segments. A rollout has to lie in one
row, its units side by side; several rollouts may share the row. k is counted through `owner`, which
has to be set for units that do not exist too: a line or turn that is missing keeps its slot.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core import units
from grpo_jax.types import Batch, Rollouts


def slot(batch: Batch) -> Int[Array, "R U"]:
  """How many units of the same rollout stand before this one in the row, existing or not."""
  owner = batch.owner
  size = owner.shape[1]
  before = jnp.tri(size, k=-1, dtype=bool)[None]
  same = owner[:, :, None] == owner[:, None, :]
  return jnp.sum(same & before, axis=2, dtype=jnp.int32)


def to_grid(
  x: Float[Array, "R U"], batch: Batch, rollouts: Rollouts, size: int
) -> Float[Array, "N G K"]:
  """x of the existing units, 0 where there is none; slots from `size` = K on are left out."""
  n, g = rollouts.reward.shape
  cells = rollouts.replace(reward=jnp.zeros((n, g * size)))
  return units.by_rollout(x, _by_cell(batch, size), cells).reshape(n, g, size)


def to_units(x: Float[Array, "N G K"], batch: Batch) -> Float[Array, "R U"]:
  """The cell of every unit; 0 where no unit is and for slots from K on."""
  n, g, size = x.shape
  return units.of_owner(x.reshape(n, g * size), _by_cell(batch, size))


def exists(batch: Batch, rollouts: Rollouts, size: int) -> Bool[Array, "N G K"]:
  found = to_grid(jnp.ones_like(batch.unit_mask), batch, rollouts, size) > 0
  return found & rollouts.alive[:, :, None]


def following(x: Array, there: Bool[Array, "N G K"], end: Array) -> Array:
  """x of the next unit of the rollout that is there, `end` [N, G] after the last one."""

  def step(after, now):
    x, there = now
    return jnp.where(there, x, after), after

  columns = jnp.moveaxis(x, 2, 0), jnp.moveaxis(there, 2, 0)
  return jnp.moveaxis(jax.lax.scan(step, end, columns, reverse=True)[1], 0, 2)


def last(there: Bool[Array, "N G K"]) -> Bool[Array, "N G K"]:
  """True for the last unit of each rollout."""
  return there & ~following(there, there, jnp.zeros(there.shape[:2], bool))


def _by_cell(batch, size):
  """A batch whose units are owned by cells of the grid [N, G * K]."""
  k = slot(batch)
  inside = k < size
  return batch.replace(
    owner=jnp.where(inside, batch.owner * size + k, 0),
    unit_mask=jnp.where(inside, batch.unit_mask, 0),
  )
