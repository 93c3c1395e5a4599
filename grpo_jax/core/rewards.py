"""Rewards of rollouts, [N, G], before any group statistic."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.core import units
from grpo_jax.errors import UserError
from grpo_jax.names import between
from grpo_jax.types import Batch, Rollouts


def check_overlong(max_tokens: int, cache: int) -> None:
  """Raises UserError unless 0 < cache <= max_tokens."""
  between("overlong_cache", cache, high=max_tokens, above=0, what="tokens before max_tokens")


def soft_overlong(length: Int[Array, "N G"], max_tokens: int, cache: int) -> Float[Array, "N G"]:
  """Soft overlong punishment (DAPO, https://arxiv.org/abs/2503.14476, equation 13), in TOKENS.

  0 up to max_tokens - cache, then linear down to -1 at max_tokens, -1 beyond.
  """
  check_overlong(max_tokens, cache)
  over = (max_tokens - cache - length).astype(jnp.float32) / cache
  return jnp.clip(over, -1.0, 0.0)


def kl_of_rollout(batch: Batch, rollouts: Rollouts) -> Float[Array, "N G"]:
  """sum_t logp_old - logp_ref of each rollout: k1 as a part of the reward, where it is unbiased."""
  if batch.logp_old is None or batch.logp_ref is None:
    raise UserError("batch.logp_old and batch.logp_ref are needed for a KL penalty in the reward")
  return units.by_rollout(units.pool_sum(batch.logp_old - batch.logp_ref, batch), batch, rollouts)
