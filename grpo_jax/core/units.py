"""The two hops of a batch: token -> unit inside a row, unit -> rollout through `owner`.

  pool_sum, pool_mean    f32[R, T] -> f32[R, U]     over the masked tokens of each unit
  spread                 f32[R, U] -> f32[R, T]     the value of a token's unit, 0 off the mask
  of_owner               f32[N, G] -> f32[R, U]     the value of a unit's rollout, 0 off unit_mask
  by_rollout             f32[R, U] -> f32[N, G]     sum over the units that a rollout owns
  token_owner            i32[R, T]                  both hops at once, -1 off the mask

What stands in a slot that the mask excludes, NaN included, reaches neither value nor gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.types import Batch, Credit, Rollouts


def masked(x: Float[Array, "R T"], batch: Batch) -> Float[Array, "R T"]:
  """x where the policy sampled the token, else exactly 0; what is dropped gets no gradient."""
  return jnp.where(batch.mask > 0, x, 0)


def pool_sum(x: Float[Array, "R T"], batch: Batch) -> Float[Array, "R U"]:
  """sum_{t in unit} x_t; an empty unit gives 0."""
  x = masked(x, batch)
  units = batch.unit_mask.shape[1]
  if units == 1:
    return jnp.sum(x, axis=1, keepdims=True)
  # Measured: a scatter compiles for seconds on TPUs, and the comparison is slow on CPUs.
  return jax.lax.platform_dependent(
    x,
    batch.unit,
    cpu=lambda x, unit: _scatter_rows(x, unit, units),
    default=lambda x, unit: _compare_rows(x, unit, units),
  )


def pool_mean(x: Float[Array, "R T"], batch: Batch) -> Float[Array, "R U"]:
  """Mean of x over the masked tokens of each unit; an empty unit gives 0."""
  count = pool_sum(jnp.ones_like(batch.mask), batch)
  return pool_sum(x, batch) / jnp.maximum(count, 1)


def spread(x: Float[Array, "R U"], batch: Batch) -> Float[Array, "R T"]:
  """x[r, unit[r, t]] where mask is 1, else 0."""
  if x.shape[1] == 1:
    return masked(jnp.broadcast_to(x, batch.unit.shape), batch)
  x = jax.lax.platform_dependent(x, batch.unit, cpu=_gather_rows, default=_select_rows)
  return masked(x, batch)


def of_owner(x: Float[Array, "N G"], batch: Batch) -> Float[Array, "R U"]:
  """x of the rollout that owns the unit; 0 where `unit_mask` is 0."""
  values = jax.lax.platform_dependent(
    x.reshape(-1),
    batch.owner,
    cpu=lambda x, owner: x[owner],
    default=lambda x, owner: jnp.sum(
      jnp.where(owner[..., None] == _ids(x.size, 3), x[None, None], 0), axis=-1, dtype=x.dtype
    ),
  )
  return jnp.where(batch.unit_mask > 0, values, 0)


def by_rollout(x: Float[Array, "R U"], batch: Batch, rollouts: Rollouts) -> Float[Array, "N G"]:
  """Sum of x over the existing units of each rollout; a rollout without units gives 0."""
  shape = rollouts.reward.shape
  x = jnp.where(batch.unit_mask > 0, x, 0).reshape(-1)
  total = jax.lax.platform_dependent(
    x,
    batch.owner.reshape(-1),
    cpu=lambda x, owner: jax.ops.segment_sum(x, owner, rollouts.reward.size),
    default=lambda x, owner: jnp.sum(
      jnp.where(owner[:, None] == _ids(rollouts.reward.size, 2), x[:, None], 0), axis=0
    ),
  )
  return total.reshape(shape)


def token_count(batch: Batch, rollouts: Rollouts) -> Float[Array, "N G"]:
  """Trained tokens of each rollout, wherever its rows and units lie."""
  return by_rollout(pool_sum(jnp.ones_like(batch.mask), batch), batch, rollouts)


def token_owner(batch: Batch) -> Int[Array, "R T"]:
  """Flat index into [N, G] of the rollout that a token belongs to; -1 where mask is 0."""
  if batch.owner.shape[1] == 1:
    owner = jnp.broadcast_to(batch.owner, batch.unit.shape)
  else:
    owner = jax.lax.platform_dependent(
      batch.owner, batch.unit, cpu=_gather_rows, default=_select_rows
    )
  return jnp.where(batch.mask > 0, owner, -1)


def is_last(batch: Batch) -> Bool[Array, "R T"]:
  """True at the last trained token that a rollout has in its row."""
  owner = token_owner(batch)

  def step(following, now):
    return jnp.where(now < 0, following, now), (now >= 0) & (now != following)

  start = jnp.full(owner.shape[0], -1, owner.dtype)
  _, last = jax.lax.scan(step, start, owner.T, reverse=True)
  return last.T


def token_adv(credit: Credit, batch: Batch) -> Float[Array, "R T"]:
  """The advantage of every token: `credit.adv_token` if the method made one, else adv spread."""
  if credit.adv_token is not None:
    return masked(credit.adv_token, batch)
  return spread(credit.adv, batch)


def _ids(count, rank):
  return jnp.arange(count, dtype=jnp.int32).reshape((1,) * (rank - 1) + (count,))


def _scatter_rows(x, unit, units):
  return jax.vmap(lambda x, unit: jax.ops.segment_sum(x, unit, units))(x, unit)


def _compare_rows(x, unit, units):
  return jnp.sum(jnp.where(unit[:, :, None] == _ids(units, 3), x[:, :, None], 0), axis=1)


def _gather_rows(x, unit):
  return jnp.take_along_axis(x, unit, axis=1)


def _select_rows(x, unit):
  hit = unit[:, :, None] == _ids(x.shape[1], 3)
  return jnp.sum(jnp.where(hit, x[:, None, :], 0), axis=2, dtype=x.dtype)
