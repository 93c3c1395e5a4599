"""Rewards of turns, [N, G, K] (`core.grids`): a gain for each turn, the outcome for the last."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core import grids, groups, returns
from grpo_jax.types import Batch, Rollouts


def belief(logp: Float[Array, "*rows L"], mask: Float[Array, "*rows L"]) -> Float[Array, "*rows"]:
  """Mean log-probability of the answer's own tokens, those where mask is 1; NaN without any."""
  total = jnp.sum(jnp.where(mask > 0, logp, 0), axis=-1)
  count = jnp.sum(mask, axis=-1)
  return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def gains(
  belief: Float[Array, "R U"], batch: Batch, rollouts: Rollouts, there: Bool[Array, "N G K"]
) -> Float[Array, "N G K"]:
  """Belief before the next turn - belief before this one, NaN for the last turn; no gradient."""
  start = grids.to_grid(jax.lax.stop_gradient(belief), batch, rollouts, there.shape[2])
  return grids.following(start, there, jnp.full_like(start[:, :, 0], jnp.nan)) - start


def rewards(
  gain: Float[Array, "N G K"], outcome: Float[Array, "N G"], there: Bool[Array, "N G K"]
) -> Float[Array, "N G K"]:
  """`outcome` for the last turn, `gain` for the others, 0 where it is not finite."""
  gain = jnp.where(jnp.isfinite(gain), gain, 0)
  gain = jnp.where(grids.last(there), outcome[:, :, None], gain)
  return jnp.where(there, gain, 0)


def standardize_together(
  reward: Float[Array, "N G K"], there: Bool[Array, "N G K"], *, ddof: int = 1, eps: float = 1e-6
) -> Float[Array, "N G K"]:
  """(r - mean) / (std + eps) over all turns of a group; 0 where they are all equal."""
  n = reward.shape[0]
  pool = groups.standardize(reward.reshape(n, -1), there.reshape(n, -1), ddof=ddof, eps=eps)
  return pool.reshape(reward.shape)


def standardize_apart(
  reward: Float[Array, "N G K"],
  outcome: Float[Array, "N G"],
  there: Bool[Array, "N G K"],
  alive: Bool[Array, "N G"],
  *,
  ddof: int = 1,
  eps: float = 1e-6,
) -> Float[Array, "N G K"]:
  """Outcomes among the outcomes of a group, gains among its gains."""
  last = grids.last(there)
  of_last = groups.standardize(outcome, alive, ddof=ddof, eps=eps)
  of_gains = standardize_together(reward, there & ~last, ddof=ddof, eps=eps)
  return jnp.where(last, of_last[:, :, None], of_gains)


def to_go(
  reward: Float[Array, "N G K"], there: Bool[Array, "N G K"], gamma: float
) -> Float[Array, "N G K"]:
  """sum_{k >= t} gamma^(k - t) reward_k along each rollout; a missing turn is no step in time."""
  size = reward.shape[2]
  mask = there.reshape(-1, size).astype(reward.dtype)
  return returns.discounted(reward.reshape(-1, size), mask, gamma).reshape(reward.shape)
