"""GTPO: Trajectory-Based Policy Optimization in Large Language Models.

M. Simoni et al., 2025, https://arxiv.org/abs/2508.03772 (group-relative trajectory-based policy
optimization; code: https://github.com/winstonsmith1897/GTPO). One prompt, G completions of n_i
tokens, no KL and no reference model:

  J = 1/G sum_i delta_i (A_i - gamma H_i) / n_i sum_t r_it lambda_it
  A_i = reward_i - mean of its group;  r = exp(logp - sg(logp)): on-policy, 1 in value, no clip
  H_i = mean entropy of the completion in nats
  delta_i = 1 if H at the start of training > entropy_limit, else 1[H_i <= entropy_limit]
  lambda = lambda_forward lambda_backward, each 1 off its conflict run and on it
           positive_weight where A_i > 0, 0 where A_i < 0

A conflict is a token that completions of both signs have at the same place; the forward run goes
from the start without a break, the backward run, places counted from the end, up to the last token
(core/conflicts.py). The abstract says tokens at the same position; the runs are from the code: a
shared token in the middle is not protected. A token in both runs of a good completion gets 4.

A, H, delta, lambda are stop-gradient. H is of the policy that sampled: the same, with one update a
batch. The start's H is that of the first batch, measured before any update. Equal rewards: A = 0,
lambda = 1, but gamma H still pushes the samples down. All delta = 0: the loss is 0.

gamma is tied to the rewards: 0.1 in the release, with rewards from 0 to 20; 0.005 is that for 0/1.
The limit is ln 2 in the paper; the release has 0.7 and no rule for the start
(entropy_limit=0.7, start_rule=False). Entropies here are exact, not floored at log 1e-6.
code_compat: the release also divides a completion by its conflict tokens (at least 1) and sums over
completions; that its backward ignores the scale of the incoming gradient cannot be said here.
conflicts=False, gamma=0 and entropy_limit=inf switch the three parts off.
"""

import math

import jax.numpy as jnp

from grpo_jax.core import conflicts as conflict
from grpo_jax.core import groups, unified, units, weights
from grpo_jax.types import Credit, Method


def make(
  *,
  gamma: float = 0.005,
  positive_weight: float = 2.0,
  entropy_limit: float = math.log(2),
  start_rule: bool = True,
  conflicts: bool = True,
  code_compat: bool = False,
) -> Method:
  token = lambda x, batch: units.spread(units.of_owner(x, batch), batch)

  def entropies(batch, rollouts):
    """H_i f32[N, G], and their mean over the batch."""
    length = units.token_count(batch, rollouts)
    total = units.by_rollout(units.pool_sum(batch.entropy_old, batch), batch, rollouts)
    present = rollouts.alive & (length > 0)
    entropy = jnp.where(present, total / jnp.maximum(length, 1), 0)
    return entropy, groups.mean(entropy.reshape(1, -1), present.reshape(1, -1))

  def credit(start, rollouts, batch):
    above, below = groups.sides(rollouts.reward, rollouts.alive)
    adv = jnp.where(above | below, groups.center(rollouts.reward, rollouts.alive), 0)
    entropy, mean = entropies(batch, rollouts)
    start = jnp.where(start < 0, mean, start)  # [1, 1]; below 0: not measured yet
    certain = entropy <= entropy_limit
    if start_rule:
      certain = certain | (start > entropy_limit)

    base = weights.rollout_mean(batch, rollouts)
    forward, backward = conflict.runs(batch, rollouts, above, below)
    if not conflicts:
      forward, backward = jnp.zeros_like(forward), jnp.zeros_like(backward)
    on_run = token(jnp.where(above, positive_weight, 0).astype(base.dtype), batch)
    emphasis = jnp.where(forward, on_run, 1) * jnp.where(backward, on_run, 1)
    weight = base * emphasis * token(certain.astype(base.dtype), batch)
    if code_compat:
      either = (forward | backward).astype(base.dtype)
      number = units.by_rollout(units.pool_sum(either, batch), batch, rollouts)
      weight = weight * rollouts.reward.shape[1] / jnp.maximum(token(number, batch), 1)
    return Credit(
      adv=units.of_owner(adv - gamma * entropy, batch),
      weight=weight,
      weights={
        "conflict": jnp.where(forward | backward, base, 0),
        "uncertain": base * token((~certain).astype(base.dtype), batch),
      },
    )

  def loss(fwd, batch, credit):
    batch = units.weighted(batch, credit)
    logp = units.masked(fwd.logp, batch)
    term = unified.estimator_term(logp, logp, units.spread(credit.adv, batch), jnp.ones_like(logp))
    shares = {name: jnp.sum(x) for name, x in credit.weights.items()}
    return jnp.sum(credit.weight * term), {"weight": jnp.sum(credit.weight), **shares}

  def remember(start, rollouts, batch, now):
    return jnp.where(start < 0, entropies(batch, rollouts)[1], start)

  return Method(
    credit=credit,
    loss=loss,
    init=lambda num_prompts: jnp.full((1, 1), -1.0),
    remember=remember,
    needs=("entropy_old",),
  )
