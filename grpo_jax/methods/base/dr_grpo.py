"""Understanding R1-Zero-Like Training: A Critical Perspective.

Z. Liu et al., 2025, https://arxiv.org/abs/2503.20783 (Dr. GRPO: "GRPO done right", section 3.2).

  L = -1/(N C) sum_i sum_t min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i)
  A_i = reward_i - mean of its group

Against GRPO: neither the length of a completion nor the deviation of its group divides anything.
C = max_tokens is a constant, the budget of a completion; never the width of a batch.
"""

from grpo_jax.core import groups, objectives, units, weights
from grpo_jax.types import Credit, Method


def make(*, max_tokens: int, eps_low: float = 0.2, eps_high: float = 0.2) -> Method:
  weights.check("constant", max_tokens)

  def credit(state, rollouts, batch):
    adv = groups.center(rollouts.reward, rollouts.alive)
    return Credit(
      adv=units.of_owner(adv, batch), weight=weights.constant(batch, rollouts, max_tokens)
    )

  objective = objectives.clipped(eps_low=eps_low, eps_high=eps_high)
  same = ("grpo", {"scale": "none", "aggregate": "constant", "max_tokens": 8}, {"max_tokens": 8})
  return Method(credit=credit, loss=objective.loss, reduces_to=same)
