"""Two multilayer perceptrons, a policy and a value, for observations that are vectors.

  h = act(W_2 act(W_1 x + b_1) + b_2),  out = W_3 h + b_3,  nothing shared between the two

Discrete actions: out are logits. Continuous ones: a ~ N(out, diag(exp(2 log_std))), log_std a
parameter that does not depend on x. Weights start orthogonal: gain sqrt(2), 0.01 for the policy's
last layer, 1 for the value's; biases and log_std start at 0: what PPO's code does, not its paper.

Samples are a fixed function of noise that is drawn beforehand, so that a loop may draw it at once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.names import between, one_of
from grpo_jax.types import Batch, Fwd

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


@dataclasses.dataclass(frozen=True)
class MLPConfig:
  observation: int  # O
  actions: int  # A: how many, or dimensions of a continuous one
  continuous: bool = False
  hidden: tuple[int, ...] = (64, 64)
  activation: str = "tanh"

  def __post_init__(self):
    one_of("activation", self.activation, ACTIVATIONS)
    for name in ("observation", "actions", "hidden"):
      between(name, getattr(self, name), 1)


def init(config: MLPConfig, key: Array) -> dict[str, Any]:
  """{"actor", "critic"}: lists of {"w" f32[in, out], "b" f32[out]}; "log_std" f32[A]."""
  actor, critic = jax.random.split(key)
  params: dict[str, Any] = {
    "actor": _tower(config, actor, config.actions, 0.01),
    "critic": _tower(config, critic, 1, 1.0),
  }
  if config.continuous:
    params["log_std"] = jnp.zeros((config.actions,))
  return params


def policy(config: MLPConfig, params, x: Float[Array, "*B O"]) -> Float[Array, "*B A"]:
  """Logits, or the mean of a continuous action."""
  return _apply(config, params["actor"], x)


def value(config: MLPConfig, params, x: Float[Array, "*B O"]) -> Float[Array, "*B"]:
  return _apply(config, params["critic"], x)[..., 0]


def noise(config: MLPConfig, key: Array, shape: tuple[int, ...]) -> Float[Array, "*B A"]:
  """What `choose` needs to sample; zeros in its place give the mode."""
  draw = jax.random.normal if config.continuous else jax.random.gumbel
  return draw(key, (*shape, config.actions))


def choose_action(config: MLPConfig, params, x: Float[Array, "*B O"], noise: Float[Array, "*B A"]):
  """i32[*B]: argmax(logits + Gumbel noise), a sample of softmax(logits); f32[*B, A]: mean + std
  noise."""
  out = policy(config, params, x)
  if config.continuous:
    return out + _as(jnp.exp(params["log_std"]), out) * noise
  return jnp.argmax(out + noise, axis=-1).astype(jnp.int32)


def log_prob_and_entropy(config: MLPConfig, params, x, action):
  """Both f32[*B], in nats. Of a continuous action before it is clipped to the action space."""
  out = policy(config, params, x)
  if config.continuous:
    log_std = _as(params["log_std"], out)
    z = (action - out) * jnp.exp(-log_std)
    log_p = jnp.sum(-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi), axis=-1)
    entropy = jnp.sum(params["log_std"] + 0.5 * math.log(2 * math.pi * math.e))
    return log_p, jnp.broadcast_to(entropy, log_p.shape)
  log_p = jax.nn.log_softmax(out, axis=-1)
  # By comparing: the gradient of a gather is a scatter, which is slow for so few actions.
  taken = jax.nn.one_hot(action, config.actions, dtype=bool)
  return jnp.sum(jnp.where(taken, log_p, 0), axis=-1), -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def make_forward(config: MLPConfig) -> Callable[[Any, Batch], Fwd]:
  """forward(params, batch) -> Fwd of the actions `batch.tokens`, or batch.extra["action"]
  f32[R, T, A] where they are continuous, at batch.extra["observation"] f32[R, T, O]."""

  def forward(params, batch: Batch) -> Fwd:
    x = batch.extra["observation"]
    action = batch.extra["action"] if config.continuous else batch.tokens
    log_p, entropy = log_prob_and_entropy(config, params, x, action)
    keep = lambda a: jnp.where(batch.mask > 0, a, 0)
    return Fwd(logp=keep(log_p), entropy=keep(entropy), value=keep(value(config, params, x)))

  return forward


def _tower(config: MLPConfig, key: Array, outputs: int, last_gain: float) -> list[dict[str, Array]]:
  sizes = (config.observation, *config.hidden, outputs)
  gains = [math.sqrt(2)] * len(config.hidden) + [last_gain]
  return [
    {
      "w": jax.nn.initializers.orthogonal(gain)(jax.random.fold_in(key, i), (a, b), jnp.float32),
      "b": jnp.zeros((b,)),
    }
    for i, (a, b, gain) in enumerate(zip(sizes[:-1], sizes[1:], gains, strict=True))
  ]


def _apply(config: MLPConfig, layers, x):
  act = ACTIVATIONS[config.activation]
  shape = x.shape[:-1]
  x = x.reshape(-1, x.shape[-1])
  for i, layer in enumerate(layers):
    x = x @ layer["w"] + layer["b"][None, :]
    x = act(x) if i + 1 < len(layers) else x
  return x.reshape(*shape, x.shape[-1])


def _as(x, like):
  """f32[A] in the shape of `like`."""
  return jnp.broadcast_to(x, like.shape)
