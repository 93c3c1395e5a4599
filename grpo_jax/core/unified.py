"""The unified policy gradient estimator: the law that policy-gradient methods obey.

  gradient = sum_rt weight * stable * A * (1 / pi_ref) * grad pi      pi_ref, A, stable: constants
  loss     = -sum_rt weight * stable * A * exp(logp - sg(logp_ref))

"Towards a Unified View of Large Language Model Post-Training", 2025. With logp_ref = sg(logp) this
is REINFORCE (and SFT at A = 1), with logp_old PPO and GRPO, with a sequence's ratio GSPO. `stable`
is 0 where a clip acts.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.types import Batch, Credit, Fwd, Method


def estimator_term(
  logp: Float[Array, "R T"],
  logp_ref: Float[Array, "R T"],
  adv: Float[Array, "R T"],
  stable: Float[Array, "R T"],
) -> Float[Array, "R T"]:
  """-stable A exp(logp - sg(logp_ref)); mask the inputs before, nothing is masked here."""
  adv, stable = jax.lax.stop_gradient((adv, stable))
  return -stable * adv * jnp.exp(logp - jax.lax.stop_gradient(logp_ref))


def estimator_coefficient(
  method: Method, fwd: Fwd, batch: Batch, credit: Credit
) -> Float[Array, "R T"]:
  """stable * A / pi_ref * pi of any method: -(d loss / d logp) / weight, 0 where weight is 0.

  How strongly, and in which direction, a method pushes each token at these log-probabilities.
  """
  loss = lambda logp: method.loss(dataclasses.replace(fwd, logp=logp), batch, credit)[0]
  used = credit.weight > 0
  return jnp.where(used, -jax.grad(loss)(fwd.logp), 0) / jnp.where(used, credit.weight, 1)
