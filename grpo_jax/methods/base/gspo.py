"""Group Sequence Policy Optimization.

C. Zheng et al., 2025, https://arxiv.org/abs/2507.18071.

  L = -1/N sum_i min(s_i A_i, clip(s_i, 1 - eps_low, 1 + eps_high) A_i)                   (eq 5)
  s_i = exp(1/L_i sum_t (logp_it - logp_old_it))                                          (eq 7)
  A_i as in GRPO

One ratio a sequence, and a sequence is a unit of the batch: with packing or a shared prefix it is
still pooled per completion. form="token" is GSPO-token (eq 13, 14): the same value, and, as long as
all tokens of a unit have the same advantage, the same gradient.
"""

from grpo_jax.core import groups, objectives, units, weights
from grpo_jax.names import one_of
from grpo_jax.types import Credit, Method

RATIO = {"sequence": "unit", "token": "unit_token"}  # by the paper's names of its two forms


def make(
  *,
  eps_low: float = 3e-4,
  eps_high: float = 4e-4,
  form: str = "sequence",
  ddof: int = 1,
  eps_std: float = 1e-4,
) -> Method:
  one_of("form", form, RATIO)

  def credit(state, rollouts, batch):
    adv = groups.standardize(rollouts.reward, rollouts.alive, ddof=ddof, eps=eps_std)
    return Credit(adv=units.of_owner(adv, batch), weight=weights.rollout_mean(batch, rollouts))

  objective = objectives.clipped(eps_low=eps_low, eps_high=eps_high, ratio=RATIO[form])
  return Method(credit=credit, loss=objective.loss)
