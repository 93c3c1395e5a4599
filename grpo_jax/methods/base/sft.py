"""Supervised fine-tuning: maximum likelihood of the completions in the data set.

  L = -1/sum_i L_i sum_i sum_t logp_it          (aggregate="rollout_mean": 1/(N L_i) instead)

The case A = 1, logp_ref = sg(logp) of the unified estimator. Rewards are not read; completions with
`alive` False are left out.
"""

from grpo_jax.core import objectives, units, weights
from grpo_jax.types import Credit, Fixed, Method


def make(*, aggregate: str = "token_mean") -> Method:
  weights.check(aggregate)

  def credit(state, rollouts, batch):
    adv = rollouts.alive.astype(batch.mask.dtype)
    return Credit(
      adv=units.of_owner(adv, batch), weight=weights.aggregate(aggregate, batch, rollouts)
    )

  return Method(credit=credit, loss=objectives.score_function().loss, plan=Fixed())
