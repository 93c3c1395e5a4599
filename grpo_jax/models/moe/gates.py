"""Which experts a token goes to, and with what weight (paper 04, T2MIR). Everything is float32.

A gate net is g(u) = W2 tanh(W1 u), R^d -> R^E, without biases.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NOISE_FLOOR = 0.01  # epsilon of sigma
Gate = dict[str, Array]


def uniform_weights(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): how the authors' linear maps start."""
  bound = 1 / math.sqrt(fan_in)
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def init(key: Array, width: int, experts: int) -> Gate:
  """w1 [d, E] and w2 [E, E]."""
  first, second = jax.random.split(key)
  return {
    "w1": uniform_weights(first, (width, experts), width),
    "w2": uniform_weights(second, (experts, experts), experts),
  }


def gate_logits(gate: Gate, u: Float[Array, "... d"]) -> Float[Array, "... E"]:
  return jnp.tanh(u @ gate["w1"]) @ gate["w2"]


def deviation(noise: Float[Array, "d E"], u: Float[Array, "N d"]) -> Float[Array, "N E"]:
  """sigma = softplus(u W_noise) + 0.01, the standard deviation of a logit's noise."""
  return jax.nn.softplus(u @ noise) + NOISE_FLOOR


def top_experts(
  z: Float[Array, "N E"], k: int, bias: Float[Array, " E"] | None = None
) -> Int[Array, "N k"]:
  """The experts with the k largest z + bias, the largest first; of equal ones the first counts.

  The bias changes the choice and no weight (paper 57): -inf shuts an expert out, but k experts
  must stay.
  """
  z = jax.lax.stop_gradient(z)
  return jax.lax.top_k(z if bias is None else z + bias[None], k)[1]


def weigh(z: Float[Array, "N E"], expert: Int[Array, "N k"]) -> Float[Array, "N k"]:
  """softmax over the logits of the chosen experts; they sum to 1."""
  return jax.nn.softmax(jnp.sum(one_hot(expert, z.shape[1]) * z[:, None], axis=-1), axis=-1)


def placed(
  expert: Int[Array, "N k"], weight: Float[Array, "N k"], experts: int
) -> Float[Array, "N E"]:
  """The weights at their experts' places, 0 elsewhere."""
  return jnp.sum(one_hot(expert, experts) * weight[..., None], axis=1)


def one_hot(expert: Int[Array, "*any"], experts: int) -> Float[Array, "*any E"]:
  """An id outside 0 .. experts - 1 gives zeros."""
  columns = jnp.arange(experts, dtype=expert.dtype).reshape((1,) * expert.ndim + (-1,))
  return (expert[..., None] == columns).astype(jnp.float32)
