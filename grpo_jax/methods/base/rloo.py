"""Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs.

A. Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740 (RLOO).

  L = -1/N sum_i (R_i - mean of the R of the others in the group) sum_t logp_it
  R_i = reward_i - beta_kl sum_t (logp_old_it - logp_ref_it)

The baseline does not contain the own reward, so the gradient is unbiased; it is never divided by a
deviation. The KL is in the reward, where k1 is right. On-policy: one update a batch.
"""

from grpo_jax.core import groups, objectives, rewards, units, weights
from grpo_jax.types import Credit, Method


def make(*, beta_kl: float = 0.0, aggregate: str = "rollout_sum") -> Method:
  weights.check(aggregate)

  def credit(state, rollouts, batch):
    reward = rollouts.reward
    if beta_kl:
      reward = reward - beta_kl * rewards.kl_of_rollout(batch, rollouts)
    adv = groups.leave_one_out(reward, rollouts.alive)
    return Credit(
      adv=units.of_owner(adv, batch), weight=weights.aggregate(aggregate, batch, rollouts)
    )

  return Method(
    credit=credit,
    loss=objectives.score_function().loss,
    needs=("logp_old", "ref") if beta_kl else (),
  )
