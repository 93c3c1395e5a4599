"""Aggregation as arrays: loss = sum_rt weight[r, t] * term[r, t], f32[R, T].

With N the included rollouts that have trained tokens, L_i the trained tokens of rollout i
(wherever its rows lie) and C a configured number of tokens:

  rollout_mean   1 / (N L_i)          GRPO: every rollout counts the same
  token_mean     1 / sum_i L_i        DAPO: every token counts the same
  constant       1 / (N C)            Dr.GRPO: C is the budget, never the padded width of a batch
  rollout_sum    1 / N                sums of log-probabilities: REINFORCE, RLOO
  unit_mean      1 / (N U_i |unit|)   mean inside a unit, over the U_i units, over rollouts

All denominators count the whole batch, before it is cut over micro-batches or devices, so the
gradient does not depend on the cut. A rollout takes part if it is alive and `include` (bool[N, G])
is true; one that does not is in no numerator and no denominator. A rollout without trained tokens
does not count in N. If nothing is left, all weights are 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core import units
from grpo_jax.names import between, one_of
from grpo_jax.types import Batch, Rollouts

AGGREGATES = ("rollout_mean", "token_mean", "constant", "rollout_sum", "unit_mean")


def check(name: str, max_tokens: int | None = None) -> None:
  """Raises UserError for an unknown aggregate, or "constant" without a token budget."""
  one_of("aggregate", name, AGGREGATES)
  if name == "constant":
    between("max_tokens", max_tokens, 1, what="the token budget of a completion")


def drop_truncated(rollouts: Rollouts) -> Bool[Array, "N G"]:
  """An `include` that leaves out rollouts without a stop token; they stay in group statistics."""
  return ~rollouts.truncated


def rollout_mean(
  batch: Batch, rollouts: Rollouts, include: Bool[Array, "N G"] | None = None
) -> Float[Array, "R T"]:
  length, number = _lengths(batch, rollouts, include)
  return _to_tokens(_divide(1, length * number), batch)


def token_mean(
  batch: Batch, rollouts: Rollouts, include: Bool[Array, "N G"] | None = None
) -> Float[Array, "R T"]:
  length, _ = _lengths(batch, rollouts, include)
  return _to_tokens(_divide(length > 0, jnp.sum(length)), batch)


def constant(
  batch: Batch, rollouts: Rollouts, tokens: int | None, include: Bool[Array, "N G"] | None = None
) -> Float[Array, "R T"]:
  check("constant", tokens)
  assert tokens is not None
  return rollout_sum(batch, rollouts, include) / tokens


def rollout_sum(
  batch: Batch, rollouts: Rollouts, include: Bool[Array, "N G"] | None = None
) -> Float[Array, "R T"]:
  length, number = _lengths(batch, rollouts, include)
  return _to_tokens(_divide(length > 0, number), batch)


def unit_mean(
  batch: Batch, rollouts: Rollouts, include: Bool[Array, "N G"] | None = None
) -> Float[Array, "R T"]:
  size = units.pool_sum(jnp.ones_like(batch.mask), batch)
  length, number = _lengths(batch, rollouts, include)
  filled = units.by_rollout((size > 0).astype(size.dtype), batch, rollouts)
  share = units.of_owner(_divide(length > 0, filled * number), batch)
  return units.spread(_divide(share, size), batch)


def aggregate(
  name: str,
  batch: Batch,
  rollouts: Rollouts,
  *,
  max_tokens: int | None = None,
  include: Bool[Array, "N G"] | None = None,
) -> Float[Array, "R T"]:
  """The weights called `name`, one of AGGREGATES; "constant" divides by `max_tokens`."""
  check(name, max_tokens)
  if name == "constant":
    return constant(batch, rollouts, max_tokens, include)
  chosen = {
    "rollout_mean": rollout_mean,
    "token_mean": token_mean,
    "rollout_sum": rollout_sum,
    "unit_mean": unit_mean,
  }[name]
  return chosen(batch, rollouts, include)


def _lengths(batch, rollouts, include):
  """Trained tokens of each included rollout, f32[N, G], and how many rollouts have any."""
  include = rollouts.alive if include is None else rollouts.alive & include
  length = jnp.where(include, units.token_count(batch, rollouts), 0)
  return length, jnp.sum(length > 0, dtype=length.dtype)


def _divide(numerator, denominator):
  """numerator / denominator, and 0 where the denominator is 0."""
  numerator = jnp.asarray(numerator, denominator.dtype)
  return jnp.where(denominator > 0, numerator, 0) / jnp.where(denominator > 0, denominator, 1)


def _to_tokens(x, batch):
  return units.spread(units.of_owner(x, batch), batch)
