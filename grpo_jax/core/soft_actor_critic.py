"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905), its formulas as functions of arrays.

  a = tanh(u), u ~ N(mean, exp(log_std)^2), log pi(a|s) = log N(u) - sum log(1 - tanh(u)^2)
  y = r + gamma (min_j Q'_j(s', a') - alpha log pi(a'|s'))       eq. 2, 3, 5; no state is terminal
  J_Q = sum_j mean (Q_j(s, a) - y)^2 / 2                            eq. 5, two critics
  J_pi = mean (alpha log pi(a|s) - min_j Q_j(s, a))                 eq. 9
  J_alpha = mean -alpha (log pi(a|s) + target_entropy)              eq. 18

a' and the a of J_pi and J_alpha are fresh samples, Q' a slow copy of the critics. Equation numbers
are recalled. No stop_gradient stands here: callers say what each loss may move.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.types import Record, record


@record
class Action(Record):
  action: Float[Array, "*B A"]
  logp: Float[Array, "*B"]  # of the action after tanh, in nats


def squashed(
  mean: Float[Array, "*B A"], log_std: Float[Array, "*B A"], noise: Float[Array, "*B A"]
) -> Action:
  """The sample that standard normal `noise` makes; log(1 - tanh(u)^2) is written as
  2 (log 2 - u - softplus(-2 u)), which stays finite where tanh(u) rounds to 1."""
  u = mean + jnp.exp(log_std) * noise
  normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
  slope = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
  return Action(action=jnp.tanh(u), logp=jnp.sum(normal - slope, axis=-1))


def target(
  reward: Float[Array, " B"],
  q_next: Float[Array, "K B"],
  logp_next: Float[Array, " B"],
  alpha: Float[Array, ""],
  gamma: float,
) -> Float[Array, " B"]:
  """y of the slow critics' values at the next state. An episode that a time limit ends goes on, as
  far as values are concerned, so there is no case in which gamma does not apply."""
  return reward + gamma * (jnp.min(q_next, axis=0) - alpha * logp_next)


def critic_loss(q: Float[Array, "K B"], y: Float[Array, " B"]) -> Float[Array, ""]:
  """J_Q, summed over the K critics."""
  return 0.5 * jnp.sum(jnp.mean((q - y[None]) ** 2, axis=1))


def actor_loss(
  logp: Float[Array, " B"], q: Float[Array, "K B"], alpha: Float[Array, ""]
) -> Float[Array, ""]:
  """J_pi."""
  return jnp.mean(alpha * logp - jnp.min(q, axis=0))


def temperature_loss(
  log_alpha: Float[Array, ""], logp: Float[Array, " B"], target_entropy: float
) -> Float[Array, ""]:
  """J_alpha: alpha grows while the entropy is below its target, -A in the paper."""
  return -jnp.exp(log_alpha) * jnp.mean(logp + target_entropy)
