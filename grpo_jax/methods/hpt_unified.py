"""Towards a Unified View of Large Language Model Post-Training (HPT, hybrid post-training).

X. Lv et al., 2025, https://arxiv.org/abs/2509.04419 (code:
https://github.com/TsinghuaC3I/Unify-Post-Training). The estimator that it unifies methods by is
core/unified.py; here is its algorithm: for each question q, the pass rate P_q of n rollouts chooses
between RL on them and SFT on the question's one demonstration tau*.

  L = 1/B sum_q [ alpha_q L_RL(q) + beta_q c_sft L_SFT(q) ] - beta_entropy mean_{kept tokens} H
  L_RL(q) = -sum_i sum_t A_i r_it / max_tokens,  A_i = reward_i - mean of the n
  L_SFT(q) = -1/|tau*| sum_t logp_t,  r = exp(logp - logp_old)
  alpha_q = 1[P_q > gate], beta_q = 1[P_q <= gate]

No clip, no deviation, no KL. A, logp_old, alpha and beta are stop-gradient. gate 0: SFT where
nothing was solved (2 / 8 for Llama); gate >= 1: SFT alone; gate < 0: RL alone, which is Dr.GRPO
without its clip, times n. A question without a demonstration has alpha 1. A group of equal rewards
that is kept has A = 0 and counts in the entropy only.

From the released code, but for the normalisation: there RL is a sum over the rows of a micro-batch
and SFT a mean over its demonstration tokens, so their balance hangs on the cut. Here both are means
over the B questions (our choice). sft_mean="tokens" is the released mean, over the demonstration
tokens of all questions with beta > 0, without 1/B.
table: (alpha, beta) by the number of solved rollouts, 0 to n, instead of the gate: the release's
soft variants (its third column, off-policy RL on the demonstration, is 0 in the tables we know) and
the constant mix. Controls of ours: switch, SFT on every question before that update and RL on every
one from there, as HPT's rivals do; shuffle, a batch's decisions dealt to its questions at random.
"""

import jax
import jax.numpy as jnp

from grpo_jax.core import groups, surrogates, units
from grpo_jax.errors import UserError
from grpo_jax.names import between, one_of
from grpo_jax.types import Credit, Flat, Method

_ROUNDING = 1e-6  # k / n may be rounded to either side of the gate


def make(
  *,
  max_tokens: int,
  gate: float = 0.0,
  sft_coef: float = 1.0,
  beta_entropy: float = 0.001,
  table: tuple[tuple[float, float], ...] = (),
  sft_mean: str = "prompts",
  switch: int | None = None,
  shuffle: bool = False,
) -> Method:
  one_of("sft_mean", sft_mean, ("prompts", "tokens"))
  between("max_tokens", max_tokens, 1, what="the token budget of a completion")

  def gates(rollouts, sampled):
    """(alpha, beta) f32[N, 2] from the number of solved rollouts."""
    dtype = rollouts.reward.dtype
    solved = jnp.sum(rollouts.correct & sampled, axis=1, dtype=jnp.int32)
    if table:
      return jnp.asarray(table, dtype)[jnp.minimum(solved, len(table) - 1)]
    tried = jnp.maximum(groups.count(sampled)[:, 0], 1)
    explore = solved.astype(dtype) / tried.astype(dtype) > gate + _ROUNDING
    if switch is not None:
      explore = jnp.full_like(explore, rollouts.step >= switch)
    return jnp.stack([explore, ~explore], axis=1).astype(dtype)

  def credit(state, rollouts, batch):
    if rollouts.step is None and (shuffle or switch is not None):
      raise UserError("hpt_unified: rollouts.step is None; give the updates made so far")
    length = units.token_count(batch, rollouts)
    alive = rollouts.alive & (length > 0)
    given = jnp.zeros_like(alive) if rollouts.given is None else rollouts.given
    sampled, shown = alive & ~given, alive & given
    both = gates(rollouts, rollouts.alive & ~given)
    if shuffle:
      assert rollouts.step is not None
      both = jax.random.permutation(jax.random.fold_in(jax.random.key(0), rollouts.step), both)
    has = jnp.any(shown, axis=1, keepdims=True)
    alpha, beta = jnp.where(has, both[:, :1], 1), jnp.where(has, both[:, 1:], 0)

    count = lambda which: jnp.maximum(jnp.sum(jnp.where(which, length, 0)), 1)  # of tokens
    questions = jnp.maximum(jnp.sum(jnp.any(alive, axis=1), dtype=length.dtype), 1)
    of_one = 1 / (jnp.maximum(length, 1) * questions)  # a completion's mean, a question's share
    imitate = shown & (beta > 0)
    sft = of_one if sft_mean == "prompts" else 1 / count(imitate)
    scale = jnp.where(sampled, alpha / (max_tokens * questions), 0)
    scale = jnp.where(shown, sft_coef * beta * sft, scale)
    adv = jnp.where(given, 1, groups.center(rollouts.reward, rollouts.alive & ~given))

    token = lambda x: units.spread(units.of_owner(x.astype(length.dtype), batch), batch)
    return Credit(
      adv=units.of_owner(adv, batch),
      weight=token(scale),
      extra={"given": token(given)},
      weights={
        "sft": token(jnp.where(imitate, of_one, 0)),
        "kept": token(jnp.where(scale > 0, 1 / count(scale > 0), 0)),
      },
    )

  def loss(fwd, batch, credit):
    batch = units.weighted(batch, credit)
    adv, given = units.spread(credit.adv, batch), credit.extra["given"] > 0
    log_ratio = jnp.where(given, 0, surrogates.log_ratio(fwd, batch))
    explore = -adv * surrogates.ratio_of(log_ratio)
    term = jnp.where(given, surrogates.reinforce(fwd.logp, adv, batch), explore)
    total = jnp.sum(credit.weight * term)
    if beta_entropy:
      entropy = units.masked(fwd.entropy, batch)
      total = total - beta_entropy * jnp.sum(credit.weights["kept"] * entropy)
    return total, {
      "weight": jnp.sum(credit.weight),
      "sft_share": jnp.sum(credit.weights["sft"]),
      "max_ratio": jnp.max(jnp.where(credit.weight > 0, surrogates.ratio_of(log_ratio), 0)),
    }

  return Method(
    credit=credit,
    loss=loss,
    plan=Flat(demonstrate=True),
    needs=("entropy",) * bool(beta_entropy),
  )
