"""Estimates of KL(policy || reference) per token, f32[R, T]; x = logp - sg(logp_ref).

  name  value            value     mean gradient of the term, when logp is of sampled tokens
  k1    x                unbiased  zero: the score function has mean 0
  k2    x^2 / 2          biased    of KL(policy || reference): the one that is wanted
  k3    exp(-x) - 1 + x  unbiased  of KL(reference || policy): the other direction
  k1+   k1               unbiased  k2's
  k3+   k3               unbiased  k2's
  rk3   r k3             unbiased  of KL(policy || reference), also when off-policy

k1, k2, k3: J. Schulman, "Approximating KL divergence", 2020. GRPO's equation 4 is k3. "+" is
straight-through: v - sg(v) of k2 carries the gradient. rk3 multiplies by the differentiable ratio.
The exponent is held within +-20; x itself is not.

Gradients are per token: the KL of the next token at the states that were visited, the visits held
constant. For the KL of whole sequences put it into the reward (`rewards.kl_of_rollout`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core import units
from grpo_jax.core.surrogates import MAX_LOG_RATIO, ratio_of
from grpo_jax.errors import UserError
from grpo_jax.names import one_of
from grpo_jax.types import Batch, Fwd

ESTIMATORS = ("k1", "k2", "k3", "k1+", "k3+", "rk3")


def check(estimator: str) -> None:
  """Raises UserError for a name that is not in ESTIMATORS."""
  one_of("kl", estimator, ESTIMATORS)


def kl(
  fwd: Fwd, batch: Batch, estimator: str, log_ratio: Float[Array, "R T"] | None = None
) -> Float[Array, "R T"]:
  """The estimate called `estimator`, 0 off the mask; `log_ratio` to logp_old is for rk3 only."""
  check(estimator)
  if batch.logp_ref is None:
    raise UserError("batch.logp_ref is missing: a KL term needs the reference log-probabilities")
  x = units.masked(fwd.logp - jax.lax.stop_gradient(batch.logp_ref), batch)
  value = {"k1": k1, "k2": k2, "k3": k3, "k1+": k1, "k3+": k3, "rk3": k3}[estimator](x)
  if estimator.endswith("+"):
    return jax.lax.stop_gradient(value) + k2(x) - jax.lax.stop_gradient(k2(x))
  if estimator == "rk3":
    if log_ratio is None:
      raise ValueError("rk3 needs log_ratio")
    return ratio_of(log_ratio) * value
  return value


def k1(x: Array) -> Array:
  return x


def k2(x: Array) -> Array:
  return 0.5 * x * x


def k3(x: Array) -> Array:
  return jnp.exp(jnp.clip(-x, -MAX_LOG_RATIO, MAX_LOG_RATIO)) - 1 + x
