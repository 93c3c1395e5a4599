"""Single-stream Policy Optimization.

Z. Xu and Z. Ding, 2025, https://arxiv.org/abs/2509.13232 (SPO, paper 68; neither 16, segments, nor
82, minimaximalist). One completion a prompt: the baseline is what the prompt's earlier visits were
worth, not what its group is.

  A = r - v(x),  v = alpha / (alpha + beta) from before this step
  A~ = (A - mean A) / (std A + 1e-8)
  L = -1/sum_i L_i sum_i sum_t min(r_it A~_i, clip(r_it, 1 - eps_low, 1 + eps_high) A~_i)
      where A~ < 0 with r_it at most dual_clip
  after the update: rho = clip(2^(-D / drift_half), rho_min, rho_max)
      alpha <- rho alpha + r,  beta <- rho beta + 1 - r
  prompts are drawn with weights sqrt(v (1 - v)) / (alpha + beta)^count_power + explore

D(x) is the drift of the policy on the prompt's previous completion y': the mean over its tokens of
|logp of y' when it was stored - logp of y' after this update|, 0 at the first visit. That is the
released code's stand-in for the paper's KL between the two policies. Whoever stores the completions
(`core.trackers.Past`) puts it, f32[N], into now.metrics["drift"]; a constant `rho`, the paper's
alternative (0.875), needs neither store nor extra pass. count_power is in the paper's summary, the
released code has 0. Mean and std are over all alive completions of the batch (ddof 1); if all A are
equal, A~ is 0. A truncated completion has r = 0.

Our reading: several completions of a prompt in one batch (also G > 1) count under one decay; a
prompt not visited before has alpha = beta = 1/2, or what `solved` of `tried` offline answers say;
rewards that are not 0 or 1 go into the same sums. baseline="none" and whiten=False are for
comparisons: without a tracker whitening alone is a batch-mean baseline. Stop-gradient: all of A~.
"""

import jax.numpy as jnp

from grpo_jax.core import groups, objectives, trackers, units, weights
from grpo_jax.errors import UserError
from grpo_jax.names import one_of
from grpo_jax.types import Credit, Method


def make(
  *,
  eps_low: float = 0.2,
  eps_high: float = 0.28,
  dual_clip: float | None = 10.0,
  drift_half: float = 0.06,  # nats a token
  rho_min: float = 0.875,
  rho_max: float = 0.96,
  rho: float | None = None,  # a constant instead of the drift
  solved=None,  # right answers of the start model for every prompt, out of `tried`
  tried: int = 8,
  explore: float = 0.05,
  count_power: float = 0.0,
  curriculum: bool = True,  # False: prompts are drawn uniformly
  baseline: str = "tracker",
  whiten: bool = True,
) -> Method:
  one_of("baseline", baseline, ("tracker", "none"))

  def init(num_prompts):
    return trackers.prior(num_prompts, solved, tried, 1 / (1 - rho_min))

  def weigh(state):
    return trackers.uncertainty(state, floor=explore, power=count_power)

  def credit(state, rollouts, batch):
    adv = _outcome(rollouts)
    if baseline == "tracker":
      adv = adv - state.value[rollouts.prompt][:, None].astype(adv.dtype)
    adv = jnp.where(rollouts.alive, adv, 0)
    if whiten:
      adv = groups.whiten(adv, rollouts.alive, ddof=1, eps=1e-8)
    return Credit(adv=units.of_owner(adv, batch), weight=weights.token_mean(batch, rollouts))

  objective = objectives.clipped(eps_low=eps_low, eps_high=eps_high, dual_clip=dual_clip)

  def remember(state, rollouts, batch, now):
    if rho is not None:
      keep = jnp.full(rollouts.prompt.shape, rho, state.alpha.dtype)
    elif "drift" in now.metrics:
      keep = trackers.forgetting(now.metrics["drift"], drift_half, rho_min, rho_max)
    else:
      raise UserError("now.metrics['drift'] is missing: supply it, or give a constant rho")
    return trackers.visited(state, rollouts, _outcome(rollouts), keep)

  return Method(
    credit=credit,
    loss=objective.loss,
    init=init,
    weigh=weigh if curriculum else None,
    remember=remember,
    needs=() if rho is not None else ("drift",),
  )


def _outcome(rollouts):
  return jnp.where(rollouts.truncated, 0, rollouts.reward)
