"""DAPO: An Open-Source LLM Reinforcement Learning System at Scale.

Q. Yu et al., 2025, https://arxiv.org/abs/2503.14476: decoupled clip and dynamic sampling. Not paper
45 of the list, "direct advantage policy optimization", which has the same short name.

  L = -1/sum_i L_i sum_i sum_t min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i)   (eq 8)
  A_i = (R_i - mean of its group) / (std of its group + eps_std)                          (eq 9)
  R_i = reward_i + soft overlong punishment of its length                                 (eq 13)

Four changes to GRPO: clip-higher; groups of equal rewards are sampled anew (the plan); the mean is
over tokens; the punishment, in tokens, starts overlong_cache before max_tokens. The released recipe
has 20480 and 4096; with the defaults a budget under 16384 tokens is never punished. `resample` is
the bound of extra rounds a step. drop_truncated is the paper's overlong filtering.
"""

from grpo_jax.core import groups, objectives, rewards, units, weights
from grpo_jax.types import Credit, Flat, Method


def make(
  *,
  eps_low: float = 0.2,
  eps_high: float = 0.28,
  max_tokens: int = 20480,
  overlong_cache: int = 4096,
  resample: int = 10,
  ddof: int = 1,
  eps_std: float = 1e-4,
  drop_truncated: bool = False,
) -> Method:
  rewards.check_overlong(max_tokens, overlong_cache)

  def credit(state, rollouts, batch):
    punishment = rewards.soft_overlong(rollouts.length, max_tokens, overlong_cache)
    reward = rollouts.reward + punishment.astype(rollouts.reward.dtype)
    adv = groups.standardize(reward, rollouts.alive, ddof=ddof, eps=eps_std)
    include = weights.drop_truncated(rollouts) if drop_truncated else None
    return Credit(
      adv=units.of_owner(adv, batch), weight=weights.token_mean(batch, rollouts, include)
    )

  objective = objectives.clipped(eps_low=eps_low, eps_high=eps_high)
  same = ("grpo", {"aggregate": "token_mean", "eps_high": 0.28}, {"max_tokens": 1 << 20})
  return Method(credit=credit, loss=objective.loss, plan=Flat(resample=resample), reduces_to=same)
