"""Losses on pairs of completions of one prompt, whatever rows and units they lie in.

The sum over a pair joins rows, so both completions have to be in the same micro-batch
(`Method.whole_groups`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core import units
from grpo_jax.errors import UserError
from grpo_jax.names import one_of
from grpo_jax.types import Batch, Rollouts

KINDS = ("sigmoid", "ipo")


def check(kind: str) -> None:
  """Raises UserError for a name that is not in KINDS."""
  one_of("kind", kind, KINDS)


def usable_pairs(batch: Batch, rollouts: Rollouts) -> Bool[Array, "N 2"]:
  """True on both of a pair if both are alive and have trained tokens and the rewards differ."""
  if rollouts.reward.shape[1] != 2:
    raise UserError(f"a pair loss needs 2 completions a prompt, not {rollouts.reward.shape[1]}")
  present = rollouts.alive & (units.token_count(batch, rollouts) > 0)
  differ = rollouts.reward[:, :1] != rollouts.reward[:, 1:]
  return jnp.broadcast_to(jnp.all(present, axis=1, keepdims=True) & differ, present.shape)


def chosen_share(
  batch: Batch, rollouts: Rollouts, chosen: Bool[Array, "N 2"]
) -> Float[Array, "R U"]:
  """2 / units of the rollout on the chosen's units with trained tokens, 0 elsewhere.

  Times the `rollout_sum` weight of their tokens, 1 / (2 pairs), each pair counts 1 / pairs once.
  """
  filled = units.pool_sum(jnp.ones_like(batch.mask), batch) > 0
  number = units.by_rollout(filled.astype(batch.mask.dtype), batch, rollouts)
  share = jnp.where(chosen, 2, 0) / jnp.maximum(number, 1)
  return jnp.where(filled, units.of_owner(share, batch), 0)


def prompt_of(batch: Batch, rollouts: Rollouts) -> Int[Array, "R U"]:
  """Index in [0, N) of the unit's prompt, -1 where no unit is."""
  return jnp.where(batch.unit_mask > 0, batch.owner // rollouts.reward.shape[1], -1)


def sum_by_prompt(x: Float[Array, "R U"], prompt: Int[Array, "R U"]) -> Float[Array, "R U"]:
  """For every unit the sum of x over all units, in these rows, of the same prompt."""
  flat = prompt.reshape(-1)
  same = (flat[:, None] == flat[None, :]) & (flat >= 0)[:, None]
  return jnp.sum(jnp.where(same, x.reshape(1, -1), 0), axis=1).reshape(x.shape)


def pair_loss(
  margin: Array, *, beta: float, label_smoothing: float = 0.0, kind: str = "sigmoid"
) -> Array:
  """Loss of a pair with margin h = (log-ratio to the reference of the chosen) - (of the rejected).

  sigmoid  -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)   DPO, 2305.18290, equation 7;
           e = label_smoothing is the chance that a label is wrong
  ipo      (h - 1 / (2 beta))^2                                   IPO, 2310.12036, equation 17
  """
  check(kind)
  if kind == "ipo":
    return (margin - 1 / (2 * beta)) ** 2
  right = (1 - label_smoothing) * jax.nn.log_sigmoid(beta * margin)
  return -right - label_smoothing * jax.nn.log_sigmoid(-beta * margin)
