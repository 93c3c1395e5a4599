"""Rank-GRPO: Training LLM-based Conversational Recommender Systems with Reinforcement Learning.

Y. Zhu et al., 2025, https://arxiv.org/abs/2510.20150 (ConvRec-R1; ICLR 2026). A completion is a
list of `ranks` lines, and a line is the unit: unit k of a row is line k, the unit after the last
rank holds what goes on beyond it (overflow). The relevance of the lines is given in
batch.unit_reward, f32[R, U]; a line that is missing has 0.

  r_ik = rel_ik                               reward="hit": the paper's exp-infinity, default
         sum_{j>=k} rel_ij / log2(j + 1)      "dcg"
         sum_{j>=k} rel_ij / gamma^(j - k)    "decay"
  A_ik = (r_ik - mean over i of r_.k) / (std over i of r_.k + eps_std), ddof 1, rank by rank
  w_ik = exp(mean over the tokens of line k of logp - logp_old), its gradient reaches all of them
  L = -1/(G ranks) sum_i sum_k min(w_ik A_ik, clip(w_ik, 1 - eps_low, 1 + eps_high) A_ik)
      + beta_kl KL (k3), averaged in the same way

reduction="rank_mean" is the paper's objective (second-hand), "token_mean" the release's: the mean
over all trained tokens, so that a line counts by its length (recalled: TRL's default there). At
ratio 1 "token_mean" has the gradient of token-level policy gradient with A_ik.

Length shaping is added to A, not to r: -shaping on each overflow token; on the stop token +shaping
after exactly `ranks` lines, -shaping after fewer, 0 after more. The stop token and overflow have no
other advantage. end_token=False: lists have no stop token of their own, the last token belongs to
its line. A line with tokens besides the stop token counts; the ratio of the stop token is that of
the unit it is in; under "rank_mean" overflow weighs as one more line (all three: our reading).

A rank with equal r in the group, for instance without any hit, has A = 0. G = 1 is an error.
Stop-gradient: A. A rollout has to lie in one row.
"""

import jax.numpy as jnp

from grpo_jax.core import grids, groups, objectives, ranking, units, weights
from grpo_jax.errors import UserError
from grpo_jax.names import between, one_of
from grpo_jax.types import Credit, Method


def make(
  *,
  ranks: int = 20,
  reward: str = "hit",
  gamma: float = 2.0,  # only for reward="decay"
  reduction: str = "rank_mean",
  eps_low: float = 0.06,
  eps_high: float = 0.08,
  shaping: float = 0.1,
  end_token: bool = True,
  eps_std: float = 1e-4,
  beta_kl: float = 1e-3,
  kl: str = "k3",
  drop_truncated: bool = False,
) -> Method:
  ranking.check(reward)
  one_of("reduction", reduction, ("rank_mean", "token_mean"))
  between("ranks", ranks, 1, what="the number of lines of a list")

  def rank_advantage(rollouts, batch):
    if rollouts.reward.shape[1] == 1:
      raise UserError("Rank-GRPO compares the lists of a group: it needs at least 2 rollouts")
    if batch.unit_reward is None:
      raise UserError("batch.unit_reward is missing: Rank-GRPO needs the relevance of every line")
    rel = grids.to_grid(batch.unit_reward, batch, rollouts, ranks)
    alive = jnp.broadcast_to(rollouts.alive[:, :, None], rel.shape)
    worth = ranking.rank_rewards(rel, reward, gamma)
    return grids.to_units(groups.standardize(worth, alive, eps=eps_std), batch)

  def length_shaping(rollouts, batch, end):
    """What overflow and stop tokens get, f32[R, T]."""
    written = units.pool_sum((~end).astype(batch.mask.dtype), batch)
    inside = grids.slot(batch) < ranks
    full = grids.to_grid(written, batch, rollouts, ranks)[:, :, -1] > 0
    over = units.by_rollout(jnp.where(inside, 0, written), batch, rollouts) > 0
    for_end = jnp.where(full, jnp.where(over, 0.0, shaping), -shaping).astype(written.dtype)
    for_end = units.spread(units.of_owner(for_end, batch), batch)
    for_over = units.spread(jnp.where(inside, 0.0, -shaping).astype(written.dtype), batch)
    return jnp.where(end, for_end, for_over)

  def credit(state, rollouts, batch):
    adv = rank_advantage(rollouts, batch)
    end = ranking.end_tokens(batch, rollouts) & end_token
    token = jnp.where(end, 0, units.spread(adv, batch))
    if shaping:
      token = token + length_shaping(rollouts, batch, end)
    include = weights.drop_truncated(rollouts) if drop_truncated else None
    if reduction == "token_mean":
      weight = weights.token_mean(batch, rollouts, include)
    else:
      size = units.spread(units.pool_sum(jnp.ones_like(batch.mask), batch), batch)
      weight = weights.rollout_sum(batch, rollouts, include) / (ranks * jnp.maximum(size, 1))
    return Credit(adv=adv, adv_token=token, weight=weight)

  objective = objectives.clipped(
    eps_low=eps_low, eps_high=eps_high, ratio="unit", beta_kl=beta_kl, kl=kl
  )
  return Method(credit=credit, loss=objective.loss, needs=("unit_reward", *objective.needs))
