"""DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models.

Z. Shao et al., 2024, https://arxiv.org/abs/2402.03300 (GRPO: section 4.1, equation 3).

  J = 1/N sum_i 1/L_i sum_t min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i) - beta_kl KL_it
  A_i = (reward_i - mean of its group) / (std of its group + eps_std)
  r_it = exp(logp_it - logp_old_it)

The paper: eps 0.2, beta_kl 0.04 with kl="k3" (equation 4). Here beta_kl is 0 by default, which
saves the pass of the reference model, and the default estimator is "k3+", whose gradient is that
of KL(policy || reference); "k3" has that of the other direction (see core/divergences.py).
ddof and eps_std are not in the paper; 1 and 1e-4 are TRL's. A group of equal rewards has A = 0.
One update a batch needs no `logp_old`; several updates a batch do.
"""

from grpo_jax.core import groups, objectives, units, weights
from grpo_jax.types import Credit, Flat, Method


def make(
  *,
  eps_low: float = 0.2,
  eps_high: float = 0.2,
  dual_clip: float | None = None,  # bound of r where A < 0; a usual value is 3
  beta_kl: float = 0.0,
  kl: str = "k3+",
  beta_entropy: float = 0.0,
  scale: str = "group",  # of the advantage: "group", "batch" or "none"
  ddof: int = 1,
  eps_std: float = 1e-4,
  aggregate: str = "rollout_mean",  # see core/weights.py
  max_tokens: int | None = None,  # only for aggregate="constant"
  drop_truncated: bool = False,
  resample: int = 0,  # rounds of DAPO's dynamic sampling: groups of equal rewards are replaced
) -> Method:
  groups.check(scale)
  weights.check(aggregate, max_tokens)

  def credit(state, rollouts, batch):
    adv = groups.standardize(rollouts.reward, rollouts.alive, scale=scale, ddof=ddof, eps=eps_std)
    include = weights.drop_truncated(rollouts) if drop_truncated else None
    return Credit(
      adv=units.of_owner(adv, batch),
      weight=weights.aggregate(aggregate, batch, rollouts, max_tokens=max_tokens, include=include),
    )

  objective = objectives.clipped(
    eps_low=eps_low,
    eps_high=eps_high,
    dual_clip=dual_clip,
    beta_kl=beta_kl,
    kl=kl,
    beta_entropy=beta_entropy,
  )
  return Method(
    credit=credit,
    loss=objective.loss,
    needs=objective.needs,
    plan=Flat(resample=resample),
  )
