"""What HPT is measured against that is no method of the library. It takes what HPT takes: samples
and one given completion a prompt."""

import jax.numpy as jnp

from grpo_jax.core import groups, surrogates, units, weights
from grpo_jax.types import Credit, Flat, Method


def luffy(max_tokens: int, gamma: float = 0.1) -> Method:
  """Learning to Reason under Off-Policy Guidance (J. Yan et al., 2025,
  https://arxiv.org/abs/2504.14945): mixed-policy GRPO with policy shaping.

    L = -1/(N C) [ sum_{i sampled} sum_t r_it A_i + sum_{i given} sum_t f(pi_it) A_i ]
    f(pi) = pi / (pi + gamma),  pi_it = exp(logp_it)
    A_i = reward_i - mean over the sampled and the given completions of its prompt

  A demonstration is one more member of the group, of a policy taken to be 1 everywhere; f keeps the
  gradient of tokens that the policy finds unlikely. gamma, the missing deviation and the constant
  C = max_tokens are those of the release; one update a batch, so its clip never acts.
  """

  def credit(state, rollouts, batch):
    alive, given = rollouts.alive, rollouts.given
    given = units.of_owner((given & alive).astype(batch.mask.dtype), batch)
    return Credit(
      adv=units.of_owner(groups.center(rollouts.reward, alive), batch),
      weight=weights.constant(batch, rollouts, max_tokens),
      extra={"given": units.spread(given, batch)},
    )

  def loss(fwd, batch, credit):
    batch = units.weighted(batch, credit)
    adv, given = units.spread(credit.adv, batch), credit.extra["given"] > 0
    ratio = surrogates.ratio_of(jnp.where(given, 0, surrogates.log_ratio(fwd, batch)))
    pi = jnp.exp(jnp.where(given, units.masked(fwd.logp, batch), 0))
    push = jnp.where(given, pi / (pi + gamma), ratio)
    return jnp.sum(credit.weight * -adv * push), {"weight": jnp.sum(credit.weight)}

  return Method(credit=credit, loss=loss, plan=Flat(demonstrate=True))
