"""Statistics of a group inside a kernel, its members along axis 1, in one or several pieces."""

from typing import NamedTuple

import jax.numpy as jnp


class Options(NamedTuple):
  kind: str
  scale: str
  ddof: int
  eps: float

  @property
  def batch(self) -> bool:
    return self.kind == "standardize" and self.scale == "batch"


def check(options: Options) -> None:
  if options.kind == "whiten":
    raise NotImplementedError("kind='whiten' is one reduction over everything: left to XLA")


def begin(shape):
  """Count, sum, highest and lowest of no member."""
  zero = jnp.zeros(shape, jnp.float32)
  return zero, zero, zero - jnp.inf, zero + jnp.inf


def count(state, x, on):
  """After the members of one more piece; x holds finite numbers where it is not on."""
  k, total, high, low = state
  both = lambda f, old, new: f(old, new)
  return (
    k + jnp.sum(jnp.where(on, 1.0, 0.0), axis=1, keepdims=True),
    total + jnp.sum(jnp.where(on, x, 0), axis=1, keepdims=True),
    both(jnp.maximum, high, jnp.max(jnp.where(on, x, -jnp.inf), axis=1, keepdims=True)),
    both(jnp.minimum, low, jnp.min(jnp.where(on, x, jnp.inf), axis=1, keepdims=True)),
  )


def squares(state, x, on):
  """Sum of squared distances of a piece from the mean."""
  k, total, _, _ = state
  away = jnp.where(on, x - total / jnp.maximum(k, 1), 0)
  return jnp.sum(away * away, axis=1, keepdims=True)


def wins(own, x, on):
  """How many of a piece are below `own` less how many are above."""
  sign = jnp.where(own > x, 1.0, jnp.where(own < x, -1.0, 0.0))
  return jnp.sum(jnp.where(on, sign, 0), axis=1, keepdims=True)


def finish(own, alive, state, second, batch, options: Options):
  """The advantage of `own`. second: squares or wins; batch: deviation over the whole batch."""
  k, total, high, low = (jnp.broadcast_to(x, own.shape) for x in state)
  live = alive & (high > low)
  away = jnp.where(live, own - total / jnp.maximum(k, 1), 0)
  others = jnp.maximum(k - 1, 1)
  if options.kind == "leave_one_out":
    return away * (k / others)
  if options.kind == "minmax":
    return away / jnp.where(live, high - low + options.eps, 1)
  if options.kind == "ranks":
    return jnp.where(live, second / others, 0)
  if options.scale == "none":
    return away
  if options.scale == "batch":
    return away / (batch + options.eps)
  variance = jnp.broadcast_to(second, own.shape) / jnp.maximum(k - options.ddof, 1)
  positive = variance > 0
  deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
  return away / (deviation + options.eps)


def needs(options: Options) -> str:
  """What a second pass over the members is for."""
  if options.kind == "ranks":
    return "wins"
  return "squares" if options.kind == "standardize" and options.scale == "group" else ""
