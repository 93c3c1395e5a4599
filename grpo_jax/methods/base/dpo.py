"""Direct Preference Optimization: Your Language Model is Secretly a Reward Model.

R. Rafailov et al., 2023, https://arxiv.org/abs/2305.18290.

  L = -mean over pairs of log sigmoid(beta h)                                             (eq 7)
  h = sum_t (logp - logp_ref) of the chosen completion - the same of the rejected

Data: two completions a prompt; the one with the higher reward is the chosen one. Pairs of equal
reward, or with one that is dead or empty, are left out. kind="ipo" is (h - 1/(2 beta))^2 of
https://arxiv.org/abs/2310.12036, equation 17. per_token divides both sums by their lengths: not in
the papers, but in IPO implementations (TRL), where 1/(2 beta) should not depend on length; default:
only for ipo. No policy gradient: a pair's gradient is not linear in its log-probabilities.
"""

import jax
import jax.numpy as jnp

from grpo_jax.core import preference, units, weights
from grpo_jax.types import Credit, Fixed, Method


def make(
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.0,
  kind: str = "sigmoid",
  per_token: bool | None = None,
) -> Method:
  preference.check(kind)
  per_token = kind == "ipo" if per_token is None else per_token

  def credit(state, rollouts, batch):
    pair = preference.usable_pairs(batch, rollouts)
    chosen = rollouts.reward == jnp.max(rollouts.reward, axis=1, keepdims=True)
    sign = jnp.where(pair, jnp.where(chosen, 1.0, -1.0), 0.0)
    if per_token:
      sign = sign / jnp.maximum(units.token_count(batch, rollouts), 1)
    return Credit(
      adv=units.of_owner(sign, batch),
      weight=weights.rollout_sum(batch, rollouts, pair),
      extra={
        "prompt": preference.prompt_of(batch, rollouts),
        "share": preference.chosen_share(batch, rollouts, pair & chosen),
      },
    )

  def loss(fwd, batch, credit):
    batch = units.weighted(batch, credit)
    gain = units.pool_sum(fwd.logp - jax.lax.stop_gradient(batch.logp_ref), batch)
    margin = preference.sum_by_prompt(credit.adv * gain, credit.extra["prompt"])
    term = preference.pair_loss(margin, beta=beta, label_smoothing=label_smoothing, kind=kind)
    share = credit.extra["share"] * units.pool_mean(credit.weight, batch)
    right = jnp.sum(jnp.where(margin > 0, share, 0))
    return jnp.sum(share * term), {"pair_accuracy": right, "margin": jnp.sum(share * margin)}

  return Method(
    credit=credit,
    loss=loss,
    plan=Fixed(completions=2),
    needs=("ref",),
    whole_groups=True,
    policy_gradient=False,
  )
