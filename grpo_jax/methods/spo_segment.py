"""Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for LLMs.

Y. Guo et al., 2025, https://arxiv.org/abs/2505.23564 (SPO-chain and SPO-tree, paper 16; neither 68,
single-stream, nor 82). All from the released code, https://github.com/AIFrameResearch/SPO.

  A = V(end of the segment) - V(its start), V by Monte Carlo from that prefix, V of the end = reward
  A~ = (A - mean A) rsqrt(var A + 1e-8) over the tokens a_t = [p_t < cut], p_t = exp(logp_old_t)
  L = mean over a_t of max(-A~ r, -A~ clip(r, 1 - eps_low, 1 + eps_high)),  r = e^clip(d, -10, 10)
      + beta_kl mean over completions of the sum over a_t of k3

chain  Segments begin at every `interval`-th token with p_t < cut (plan Chain); V of their starts is
       the mean reward of `samples` continuations, given in batch.unit_reward, NaN where there is
       none: tokens before the first cut have A = 0. The value of a truncated completion is 0.
tree   A segment is an edge (plan Tree): a rollout is a node with its own tokens, V of a finished
       one its reward, else the mean over its children. mode="rloo": A = V(child) - V(parent), the
       plain mean in spite of the name; "grpo": divided by (std of the children, ddof 0, + 1e-8).
       Edges with A = 0 are dropped from every mean.

If no token has p_t < cut, a_t is all trained tokens. var has ddof 1; equal A give 0. Stop-gradient:
A, p, logp_old, V. p_t = cut counts as sure. Left out: the release's skip of batches with mean ratio
above 10 (no sum over rows), its replay of edges (<= 32 a question, used once, younger than 8
iterations), and that it keeps edges with A = 0 and "best-of-4 progress", which for V in [0, 1] is 0
where A is (our reading). whiten=False and drop_zero=False are for tests of unbiasedness.
"""

import jax
import jax.numpy as jnp

from grpo_jax.core import groups, objectives, segments, trees, units, weights
from grpo_jax.errors import UserError
from grpo_jax.names import one_of
from grpo_jax.types import Chain, Credit, Method, Tree


def make(
  *,
  form: str = "chain",
  cut: float = 0.9,
  interval: int = 5,
  samples: int = 9,
  branching: tuple[int, ...] = (6, 6, 6),
  segment_tokens: int = 30,
  mode: str = "rloo",
  eps_low: float = 0.2,
  eps_high: float = 0.2,
  beta_kl: float = 1e-4,
  kl: str = "k3",
  whiten: bool = True,
  drop_zero: bool = True,
) -> Method:
  one_of("form", form, ("chain", "tree"))
  trees.check(mode)
  chain, depth = form == "chain", len(branching)

  def segment_advantage(rollouts, batch):
    """(A f32[R, U], rollouts that take part bool[N, G])."""
    rollouts = rollouts.replace(reward=jnp.where(rollouts.truncated, 0, rollouts.reward))
    if chain:
      if batch.unit_reward is None:
        raise UserError("batch.unit_reward is missing: SPO-chain needs the values at its cuts")
      return segments.advantage(batch.unit_reward, batch, rollouts), rollouts.alive
    if depth > 1 and rollouts.parent is None:
      raise UserError("rollouts.parent is missing: SPO-tree needs rollouts that branch")
    adv = trees.edge_advantage(rollouts, depth, mode=mode)
    return units.of_owner(adv, batch), rollouts.alive & ((adv != 0) | (not drop_zero))

  def credit(state, rollouts, batch):
    adv, include = segment_advantage(rollouts, batch)
    unsure = (batch.mask > 0) & (jnp.exp(batch.logp_old) < cut)
    masked = batch.replace(mask=unsure.astype(batch.mask.dtype))
    weight = weights.token_mean(masked, rollouts, include)
    weight = jnp.where(jnp.any(weight > 0), weight, weights.token_mean(batch, rollouts, include))
    used = weight > 0
    token = units.spread(adv, batch)
    if whiten:
      var = groups.batch_std(token, used, ddof=1) ** 2
      token = groups.batch_center(token, used) * jax.lax.rsqrt(var + 1e-8)
    kl_weight = jnp.where(used, weights.rollout_sum(batch, rollouts, include), 0)
    return Credit(
      adv=adv, adv_token=token, weight=weight, weights={"kl": kl_weight} if beta_kl else {}
    )

  objective = objectives.clipped(
    eps_low=eps_low, eps_high=eps_high, max_log_ratio=10.0, beta_kl=beta_kl, kl=kl, kl_apart=True
  )
  tree_needs = ("parent",) * (depth > 1)
  return Method(
    credit=credit,
    loss=objective.loss,
    plan=Chain(interval, samples, cut) if chain else Tree(tuple(branching), segment_tokens),
    needs=("logp_old", *(("unit_reward",) if chain else tree_needs), *objective.needs),
  )
