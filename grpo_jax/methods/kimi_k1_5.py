"""Kimi k1.5: Scaling Reinforcement Learning with LLMs.

Kimi Team, 2025, https://arxiv.org/abs/2501.12599 (sections 2.3 and 2.4).

Mirror descent towards pi* ~ pi_i exp(r / tau), the optimum of E r - tau KL(pi || pi_i): the squared
error of its condition r - tau log Z = tau log(pi / pi_i) on the samples of pi_i. For k responses a
prompt, with S_j the log-probability of the whole response (a sum) and D_j = S_j - S_j under pi_i,

  L = 1/(B k) sum_j [ -(r_j - b) S_j + tau/2 D_j^2 ]
  b = mean_j r_j (in practice), or tau logmeanexp_j(r_j / tau), the estimate of tau log Z
  r_j = reward_j + length_weight length_reward_j, the latter from step length_warmup on
  length_reward_j = l if correct else min(0, l),  l = 1/2 - (len_j - min) / (max - min)

L's gradient is 1/(2 tau) of the squared error's with tau log Z := b. r, b and pi_i are
stop-gradient; pi_i is the policy that sampled the batch (logp_old), from which several updates are
made, off-policy on purpose without importance weights. No ratio, no clip, no deviation. Equal
rewards, or k = 1: no push, only the pull to pi_i, which is 0 at the first update. Adam's moments
are made anew for every batch (reset_optimizer). S sums: length_normalize (ours) takes means.

Prompts are drawn in proportion to 1 - s_q, s_q the success rate of prompt q (prioritize); never
visited: s_q = 0; all solved: uniformly. How s_q is tracked is not given: here old visits count
`memory` as much with each new one.

No training code is public. From the report: the objective, b, both rewards. Ours: the
loss form, the guards; tau (0.02 with sums, 0.1 with means) and length_weight are assumed.
negatives=False: only responses above b push, for the ablation against fitting the best samples.
Not here: partial rollouts, long2short, prompt filters, the curriculum by given difficulty.
"""

import jax
import jax.numpy as jnp

from grpo_jax.core import (
  groups,
  length_rewards,
  log_partition,
  sequences,
  surrogates,
  trackers,
  units,
  weights,
)
from grpo_jax.names import between, one_of
from grpo_jax.types import Credit, Method


def make(
  *,
  tau: float | None = None,
  baseline: str = "mean",
  length_weight: float = 0.5,
  length_warmup: int = 0,
  length_normalize: bool = False,
  prioritize: bool = True,
  memory: float = 0.5,
  negatives: bool = True,
  reset_optimizer: bool = True,
) -> Method:
  one_of("baseline", baseline, ("mean", "log_z"))
  if tau is None:
    tau = 0.1 if length_normalize else 0.02
  between("tau", tau, above=0)
  between("memory", memory, 0, 1)

  def credit(state, rollouts, batch):
    alive = rollouts.alive
    short = length_rewards.relative_length(rollouts.length, rollouts.correct, alive)
    on = jnp.where(state["step"] >= length_warmup, length_weight, 0.0)
    reward = rollouts.reward + (on * short).astype(rollouts.reward.dtype)
    if baseline == "mean":
      adv = groups.center(reward, alive)
    else:
      adv = log_partition.center_by_log_z(reward, alive, tau)
    if not negatives:
      adv = jnp.maximum(adv, 0)
    per_token = weights.rollout_mean(batch, rollouts)
    return Credit(
      adv=units.of_owner(adv, batch),
      weight=per_token if length_normalize else weights.rollout_sum(batch, rollouts),
      weights={"per_token": per_token},  # so that a response counts once
    )

  def loss(fwd, batch, credit):
    batch = units.weighted(batch, credit)
    push = surrogates.reinforce(fwd.logp, units.spread(credit.adv, batch), batch)
    gain = sequences.sum_of_rollout(surrogates.log_ratio(fwd, batch), batch)
    if length_normalize:
      gain = gain / jnp.maximum(sequences.sum_of_rollout(batch.mask, batch), 1)
    square = jnp.sum(credit.weights["per_token"] * gain * gain)
    return jnp.sum(credit.weight * push) + tau / 2 * square, {
      "weight": jnp.sum(credit.weight),
      "squared_gain": jax.lax.stop_gradient(square),
    }

  def init(num_prompts):
    none = jnp.zeros(num_prompts)
    return {"success": trackers.Tracker(alpha=none, beta=none), "step": jnp.zeros((), jnp.int32)}

  def weigh(state):
    s = state["success"]
    unsolved = jnp.where(s.count > 0, s.beta / jnp.where(s.count > 0, s.count, 1), 1)
    return jnp.where(jnp.any(unsolved > 0), unsolved, 1)

  def remember(state, rollouts, batch, now):
    keep = jnp.full(rollouts.prompt.shape, memory)
    correct = rollouts.correct.astype(rollouts.reward.dtype)
    success = trackers.visited(state["success"], rollouts, correct, keep)
    return {"success": success, "step": now.step + 1}

  return Method(
    credit=credit,
    loss=loss,
    init=init,
    weigh=weigh if prioritize else None,
    remember=remember,
    fresh_optimizer=reset_optimizer,
    policy_gradient=False,
  )
