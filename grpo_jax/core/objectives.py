"""The losses that many papers share. A paper whose loss is GRPO's says so in one line:

  objective = objectives.clipped(eps_low=eps_low, eps_high=eps_high, beta_kl=beta_kl, kl=kl)
  return Method(credit=credit, loss=objective.loss, needs=objective.needs)

  clipped   sum_rt weight (-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)
              + value_coef value loss + beta_kl KL - beta_entropy H)
  score     sum_rt weight (-A logp): REINFORCE, RLOO, maximum likelihood

A is `credit.adv_token`, or `credit.adv` spread over its unit. What stands in a unit without weight
(a dead rollout), NaN included, reaches neither value nor gradient.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from grpo_jax.core import divergences, surrogates, units, values
from grpo_jax.names import one_of
from grpo_jax.types import Batch, Credit, Fwd, Metrics

RATIOS = {
  "token": lambda log_ratio, batch: log_ratio,
  "unit": surrogates.sequence_log_ratio,
  "unit_token": surrogates.token_form,
}


@dataclasses.dataclass(frozen=True)
class Objective:
  """`loss` and `needs` of a Method."""

  loss: Callable[[Fwd, Batch, Credit], tuple[Array, Metrics]]
  needs: tuple[str, ...] = ()


def clipped(
  *,
  eps_low: float,
  eps_high: float,
  dual_clip: float | None = None,
  ratio: str = "token",
  max_log_ratio: float | None = None,
  value_coef: float | None = None,
  eps_value: float | None = None,
  beta_kl: float = 0.0,
  kl: str = "k3+",
  kl_apart: bool = False,
  beta_entropy: float = 0.0,
) -> Objective:
  """PPO's clipped loss, with the terms whose coefficient is given.

  ratio: r of the "token", of the "unit" (GSPO: one ratio, its gradient to all tokens), or
  "unit_token" (its value, a gradient to the own token only); `max_log_ratio` bounds |log r| of a
  token, with gradient 0 beyond. dual_clip: the bound of r where A < 0. value_coef: of the value
  loss against credit.extra["target"], clipped by eps_value. kl: see core/divergences.py; kl_apart:
  the KL has weights of its own, credit.weights["kl"], in units with weight only. Metrics are those
  of `surrogates.metrics`, and "value_loss" and "kl" where there are such terms.
  """
  one_of("kl", kl, divergences.ESTIMATORS)
  one_of("ratio", ratio, RATIOS)
  clip = {"eps_low": eps_low, "eps_high": eps_high}

  def loss(fwd, batch, credit):
    batch = units.weighted(batch, credit)
    adv = units.token_adv(credit, batch)
    of_token = surrogates.log_ratio(fwd, batch)
    if max_log_ratio is not None:
      of_token = jnp.clip(of_token, -max_log_ratio, max_log_ratio)
    log_ratio = RATIOS[ratio](of_token, batch)
    term = surrogates.clipped(log_ratio, adv, **clip, dual_clip=dual_clip)
    metrics = surrogates.metrics(log_ratio, adv, credit, **clip)
    if value_coef is not None:
      value, value_old = (units.masked(v, batch) for v in (fwd.value, batch.extra["value"]))
      error = values.clipped_value_loss(value, value_old, credit.extra["target"], eps_value)
      metrics["value_loss"] = jnp.sum(credit.weight * error)
      term = term + value_coef * error
    if beta_kl:
      divergence = divergences.kl(fwd, batch, kl, of_token)
      metrics["kl"] = jnp.sum((credit.weights["kl"] if kl_apart else credit.weight) * divergence)
      term = term if kl_apart else term + beta_kl * divergence
    if beta_entropy:
      term = term - beta_entropy * units.masked(fwd.entropy, batch)
    total = jnp.sum(credit.weight * term)
    return total + beta_kl * metrics["kl"] if beta_kl and kl_apart else total, metrics

  needs = ("value", "logp_old") * (value_coef is not None)
  needs += ("ref",) * bool(beta_kl) + ("entropy",) * bool(beta_entropy)
  return Objective(loss=loss, needs=needs)


def score_function() -> Objective:
  """-A logp: on-policy, ratio 1 in the unified form; the metric is the sum of the weights."""

  def loss(fwd, batch, credit):
    batch = units.weighted(batch, credit)
    term = surrogates.reinforce(fwd.logp, units.token_adv(credit, batch), batch)
    return jnp.sum(credit.weight * term), {"weight": jnp.sum(credit.weight)}

  return Objective(loss=loss)
