"""The two hops of a batch: token -> unit inside a row, unit -> rollout through `owner`.

  pool_sum, pool_mean    f32[R, T] -> f32[R, U]     over the masked tokens of each unit
  spread                 f32[R, U] -> f32[R, T]     the value of a token's unit, 0 off the mask
  of_owner               f32[N, G] -> f32[R, U]     the value of a unit's rollout, 0 off unit_mask
  by_rollout             f32[R, U] -> f32[N, G]     sum over the units that a rollout owns
  token_owner            i32[R, T]                  both hops at once, -1 off the mask
  weighted               Batch -> Batch             without the units that no weight falls on

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
  count = batch.unit_mask.shape[1]
  return jnp.sum(x, axis=1, keepdims=True) if count == 1 else _add_at(x, batch.unit, count)


def pool_mean(x: Float[Array, "R T"], batch: Batch) -> Float[Array, "R U"]:
  """Mean of x over the masked tokens of each unit; an empty unit gives 0."""
  count = pool_sum(jnp.ones_like(batch.mask), batch)
  return pool_sum(x, batch) / jnp.maximum(count, 1)


def spread(x: Float[Array, "R U"], batch: Batch) -> Float[Array, "R T"]:
  """x[r, unit[r, t]] where mask is 1, else 0."""
  return masked(_to_tokens(x, batch), batch)


def of_owner(x: Float[Array, "N G"], batch: Batch) -> Float[Array, "R U"]:
  """x of the rollout that owns the unit; 0 where `unit_mask` is 0."""
  values = _take(x.reshape(1, -1), batch.owner.reshape(1, -1)).reshape(batch.owner.shape)
  return jnp.where(batch.unit_mask > 0, values, 0)


def by_rollout(x: Float[Array, "R U"], batch: Batch, rollouts: Rollouts) -> Float[Array, "N G"]:
  """Sum of x over the existing units of each rollout; a rollout without units gives 0."""
  x = jnp.where(batch.unit_mask > 0, x, 0).reshape(1, -1)
  total = _add_at(x, batch.owner.reshape(1, -1), rollouts.reward.size)
  return total.reshape(rollouts.reward.shape)


def token_count(batch: Batch, rollouts: Rollouts) -> Float[Array, "N G"]:
  """Trained tokens of each rollout, wherever its rows and units lie."""
  return by_rollout(pool_sum(jnp.ones_like(batch.mask), batch), batch, rollouts)


def token_owner(batch: Batch) -> Int[Array, "R T"]:
  """Flat index into [N, G] of the rollout that a token belongs to; -1 where mask is 0."""
  return jnp.where(batch.mask > 0, _to_tokens(batch.owner, batch), -1)


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


def weighted(batch: Batch, credit: Credit) -> Batch:
  """The batch with mask 0 on units without any weight, those of dead rollouts among them.

  A loss begins with it: weight 0 times NaN is NaN, while what the mask excludes reaches nothing. A
  unit of which some tokens have weight stays whole, as its ratio is of all its tokens.
  """
  used = pool_sum(credit.weight, batch) > 0
  return batch.replace(mask=spread(used.astype(batch.mask.dtype), batch))


def _to_tokens(x, batch):
  if x.shape[1] == 1:
    return jnp.broadcast_to(x, batch.unit.shape)
  return _take(x, batch.unit)


# TPUs are slow at gathers and compile a scatter for seconds; CPUs are slow at comparing.


def _add_at(x, at, size):
  """out[r, u] = sum of x[r, t] over at[r, t] == u."""
  return jax.lax.platform_dependent(
    x,
    at,
    cpu=lambda x, at: _add_by_scatter(x, at, size),
    default=lambda x, at: _add_by_comparing(x, at, size),
  )


def _take(x, at):
  """out[r, t] = x[r, at[r, t]]."""
  return jax.lax.platform_dependent(x, at, cpu=_take_by_gather, default=_take_by_comparing)


def _add_by_scatter(x, at, size):
  return jax.vmap(lambda x, at: jax.ops.segment_sum(x, at, size))(x, at)


def _add_by_comparing(x, at, size):
  return jnp.sum(jnp.where(_equal(at, size), x[:, :, None], 0), axis=1)


def _take_by_gather(x, at):
  return jnp.take_along_axis(x, at, axis=1)


def _take_by_comparing(x, at):
  return jnp.sum(jnp.where(_equal(at, x.shape[1]), x[:, None, :], 0), axis=2, dtype=x.dtype)


def _equal(at, size):
  return at[:, :, None] == jnp.arange(size, dtype=at.dtype)[None, None, :]
