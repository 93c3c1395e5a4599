"""Proximal Policy Optimization Algorithms.

J. Schulman et al., 2017, https://arxiv.org/abs/1707.06347.

  L = mean over tokens of -min(r_t A_t, clip(r_t, 1 - eps_low, 1 + eps_high) A_t)         (eq 7)
      + value_coef max((V_t - target_t)^2, (clip(V_t, V_old_t +- eps_value) - target_t)^2)
      - beta_entropy H_t                                                                  (eq 9)
  A_t, target_t = A_t + V_old_t by generalized advantage estimation                       (eq 11)

Every token is a step. The reward of a rollout comes with its last token; rewards="unit": that of
each unit, batch.unit_reward, with the last token of the unit (turns; steps of control). Each token
may pay beta_kl (logp_old - logp_ref). A rollout has to lie in one row; several may share one. What
follows its last token is worth 0; bootstrap=True: batch.extra["bootstrap"] f32[R, T] there, and 0
elsewhere, for rollouts that go on after the row (without gradient). whiten: A is shifted and scaled
to mean 0 and deviation 1 over the tokens of the batch (targets are made before). The clip of the
value is from the released code; eps_value=None leaves it out. Reads the old values in
batch.extra["value"] and the new in fwd.value.
"""

import jax.numpy as jnp

from grpo_jax.core import groups, objectives, returns, units, weights
from grpo_jax.names import one_of
from grpo_jax.types import Credit, Method


def make(
  *,
  eps_low: float = 0.2,
  eps_high: float = 0.2,
  gamma: float = 1.0,
  lam: float = 0.95,
  whiten: bool = True,
  value_coef: float = 0.5,
  eps_value: float | None = 0.2,
  beta_kl: float = 0.0,
  beta_entropy: float = 0.0,
  aggregate: str = "token_mean",
  rewards: str = "rollout",
  bootstrap: bool = False,
) -> Method:
  weights.check(aggregate)
  one_of("rewards", rewards, ("rollout", "unit"))

  def credit(state, rollouts, batch):
    weight = weights.aggregate(aggregate, batch, rollouts)
    used = (weight > 0).astype(weight.dtype)
    if rewards == "unit":
      paid, last = units.spread(batch.unit_reward, batch), units.is_last(_units_as_rollouts(batch))
    else:
      paid = units.spread(units.of_owner(rollouts.reward, batch), batch)
      last = units.is_last(batch)
    reward = jnp.where(last, paid, 0)
    if beta_kl:
      reward = reward - beta_kl * units.masked(batch.logp_old - batch.logp_ref, batch)
    if bootstrap:  # the value that follows, as a part of the last reward
      reward = reward + gamma * units.masked(batch.extra["bootstrap"], batch)
    owner = units.token_owner(batch)
    adv, target = returns.gae(
      reward, batch.extra["value"], used, gamma=gamma, lam=lam, segment=owner
    )
    if whiten:
      adv = groups.whiten(adv, used > 0)
    return Credit(
      adv=units.pool_mean(adv, batch), adv_token=adv, weight=weight, extra={"target": target}
    )

  objective = objectives.clipped(
    eps_low=eps_low,
    eps_high=eps_high,
    value_coef=value_coef,
    eps_value=eps_value,
    beta_entropy=beta_entropy,
  )
  needs = objective.needs + ("ref",) * bool(beta_kl)
  needs += ("unit_reward",) * (rewards == "unit") + ("bootstrap",) * bootstrap
  return Method(credit=credit, loss=objective.loss, needs=needs)


def _units_as_rollouts(batch):
  """For what asks where a rollout ends: every unit as one of its own."""
  ids = jnp.arange(batch.owner.size, dtype=batch.owner.dtype)
  return batch.replace(owner=ids.reshape(batch.owner.shape))
