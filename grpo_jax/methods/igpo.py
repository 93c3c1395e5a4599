"""Information Gain-based Policy Optimization: A Simple and Effective Approach for Multi-Turn LLM
Agents.

G. Wang et al., 2025, https://arxiv.org/abs/2510.14967. A turn is the unit. What the policy believes
of the right answer before each turn is given in batch.extra["answer_logp"], f32[R, U]: the mean
log-probability of the answer's tokens given all that precedes the turn, by the policy that sampled.

  p_it = exp(answer_logp before turn t + 1);  p_i0 is after the bare prompt
  r_it = p_it - p_i,t-1  for t < T_i                       gain="prob"; "log": without exp
  r_iT = the outcome, or `penalty` if the rollout was truncated (no answer within the turns)
  A_it = (r_it - mean X) / (std X + eps_std), X all turn rewards of the group     normalize="joint"
         "separate": gains among gains, outcomes among outcomes
  B_it = sum_{k>=t} gamma^(k-t) A_ik                                              (eq 7)
  L = -1/N sum_i 1/L_i sum_l min(r_l B_turn(l), clip(r_l, 1 - eps_low, 1 + eps_high) B_turn(l))
      + beta_kl KL (k3),  r_l = exp(logp_l - logp_old_l)

The z-scores and equation 7 are second-hand and recalled; they name no ddof (1: our reading). The
released code differs: returns-to-go of the bare r at every token (gamma 1) minus their mean over
the group at the same token position, no deviation: normalize="position_mean", for replication only
(one rollout a row). It adds an entropy bonus of 0.001, and a format failure is -2 there.
penalty=None leaves all failures to the verifier.

gain="given": gains stand in batch.unit_reward. gain="constant": `bonus` for every turn but the
last, a control without information. A belief that is missing, NaN or infinite gives gain 0; a pool
of one or of equal rewards gives A = 0; one turn: outcome only. Stop-gradient: p, A. A rollout has
to lie in one row.
"""

import jax.numpy as jnp

from grpo_jax.core import grids, objectives, positions, turns, units, weights
from grpo_jax.errors import UserError
from grpo_jax.names import one_of
from grpo_jax.types import Credit, Method

NEEDS = {
  "prob": ("answer_logp",),
  "log": ("answer_logp",),
  "given": ("unit_reward",),
  "constant": (),
}
NORMALIZE = ("joint", "separate", "position_mean")


def make(
  *,
  gain: str = "prob",
  bonus: float = 0.1,  # only for gain="constant"
  normalize: str = "joint",
  gamma: float = 1.0,
  penalty: float | None = -2.0,
  eps_low: float = 0.2,
  eps_high: float = 0.2,
  ddof: int = 1,
  eps_std: float = 1e-6,
  beta_kl: float = 1e-3,
  kl: str = "k3",
  beta_entropy: float = 0.0,
) -> Method:
  one_of("gain", gain, NEEDS)
  one_of("normalize", normalize, NORMALIZE)

  def gains(rollouts, batch, there):
    """r_it of all turns but the last, f32[N, G, K]."""
    if gain == "constant":
      return jnp.full(there.shape, bonus, rollouts.reward.dtype)
    given = batch.unit_reward if gain == "given" else batch.extra.get("answer_logp")
    if given is None:
      raise UserError(f"the batch has no {NEEDS[gain][0]}, which IGPO with gain={gain!r} reads")
    if gain == "given":
      return grids.to_grid(given, batch, rollouts, there.shape[2])
    return turns.gains(jnp.exp(given) if gain == "prob" else given, batch, rollouts, there)

  def credit(state, rollouts, batch):
    there = grids.exists(batch, rollouts, batch.unit_mask.shape[1])
    outcome = rollouts.reward
    if penalty is not None:
      outcome = jnp.where(rollouts.truncated, penalty, outcome)
    reward = turns.rewards(gains(rollouts, batch, there), outcome, there)
    weight = weights.rollout_mean(batch, rollouts)
    if normalize == "position_mean":
      token = positions.centered_returns(grids.to_units(reward, batch), batch, rollouts)
      return Credit(adv=units.pool_mean(token, batch), adv_token=token, weight=weight)
    if normalize == "joint":
      adv = turns.standardize_together(reward, there, ddof=ddof, eps=eps_std)
    else:
      adv = turns.standardize_apart(reward, outcome, there, rollouts.alive, ddof=ddof, eps=eps_std)
    adv = turns.to_go(adv, there, gamma)
    return Credit(adv=grids.to_units(adv, batch), weight=weight)

  objective = objectives.clipped(
    eps_low=eps_low, eps_high=eps_high, beta_kl=beta_kl, kl=kl, beta_entropy=beta_entropy
  )
  needs = NEEDS[gain] + objective.needs
  plain = {"gain": "constant", "bonus": 0.0, "normalize": "separate", "penalty": None}
  same = ("grpo", {"eps_std": 1e-6}, plain | {"beta_kl": 0.0})
  return Method(credit=credit, loss=objective.loss, needs=needs, reduces_to=same)
