"""MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention.

MiniMax, 2025, https://arxiv.org/abs/2506.13585 (CISPO: section 3.1, equations 4 and 5).

  L = -1/sum_i L_i sum_i sum_t sg(clip(r_it, 1 - eps_low, 1 + eps_high)) A_i logp_it
  A_i as in GRPO

The clipped ratio is a constant factor, so no token ever loses its gradient. The paper has no lower
bound (eps_low=None) and tunes eps_high without giving a number; 4 bounds the ratio at 5.
"""

import jax.numpy as jnp

from grpo_jax.core import groups, surrogates, units, weights
from grpo_jax.types import Credit, Method


def make(
  *,
  eps_low: float | None = None,
  eps_high: float = 4.0,
  ddof: int = 1,
  eps_std: float = 1e-4,
) -> Method:
  def credit(state, rollouts, batch):
    adv = groups.standardize(rollouts.reward, rollouts.alive, ddof=ddof, eps=eps_std)
    return Credit(adv=units.of_owner(adv, batch), weight=weights.token_mean(batch, rollouts))

  def loss(fwd, batch, credit):
    batch = units.weighted(batch, credit)
    adv = units.spread(credit.adv, batch)
    log_ratio = surrogates.log_ratio(fwd, batch)
    bounds = {"eps_low": eps_low, "eps_high": eps_high}
    term = surrogates.cispo(log_ratio, fwd.logp, adv, batch, **bounds)
    metrics = surrogates.bound_metrics(log_ratio, credit, **bounds)
    return jnp.sum(credit.weight * term), metrics

  return Method(credit=credit, loss=loss)
