"""Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning.

R. J. Williams, 1992, https://doi.org/10.1007/BF00992696 (REINFORCE).

  L = -1/N sum_i (reward_i - b) sum_t logp_it

baseline "batch": b is the mean reward of the batch (its own reward included, which shrinks the mean
gradient by 1 - 1/N); "none": b = 0. Groups play no role. On-policy: one update a batch.
"""

import jax.numpy as jnp

from grpo_jax.core import groups, objectives, units, weights
from grpo_jax.names import one_of
from grpo_jax.types import Credit, Method


def make(*, baseline: str = "batch", aggregate: str = "rollout_sum") -> Method:
  one_of("baseline", baseline, ("batch", "none"))
  weights.check(aggregate)

  def credit(state, rollouts, batch):
    adv = jnp.where(rollouts.alive, rollouts.reward, 0)
    if baseline == "batch":
      adv = groups.batch_center(rollouts.reward, rollouts.alive)
    return Credit(
      adv=units.of_owner(adv, batch), weight=weights.aggregate(aggregate, batch, rollouts)
    )

  return Method(credit=credit, loss=objectives.score_function().loss)
