"""The scan along a row as two associative operators, so that any grouping of columns gives it.

FILL finds the next token that is on the mask, with its value and segment. LINEAR composes the maps
A -> b + a A of the tokens; a token off the mask is the identity.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Operator:
  """combine(left, right) for columns left and right of each other, and its neutral element."""

  combine: Callable
  neutral: tuple


def _fill(left, right):
  take = left[0] > 0
  return tuple(jnp.where(take, a, b) for a, b in zip(left, right, strict=True))


def _linear(left, right):
  return left[0] * right[0], left[1] + left[0] * right[1]


FILL = Operator(_fill, (0.0, 0.0, 0))
LINEAR = Operator(_linear, (1.0, 0.0))


def advance(exclusive, reward, on, decay, value, last, gamma, segment):
  """(A, items) of a block of columns; `exclusive(operator, items)` gives a column what follows it.

  on: 1.0 or 0.0. items: what `exclusive` was given and returned, for the carry to the block before.
  """
  live = on > 0
  reward = jnp.where(live, reward, 0)
  zero = jnp.zeros_like(reward)
  value_here = zero if value is None else jnp.where(live, value, 0)
  ids = jnp.zeros(reward.shape, jnp.int32) if segment is None else segment
  fill = on, value_here, ids
  seen, value_next, ids_next = filled = exclusive(FILL, fill)
  linked = jnp.where(ids == ids_next, seen, 0)
  delta = reward
  if value is not None:
    beyond = zero if last is None else jnp.where(live, last, 0)
    delta = reward + gamma * jnp.where(linked > 0, value_next, beyond) - value_here
  step = jnp.where(live, decay, 0) * linked
  linear = jnp.where(live, step, 1), jnp.where(live, delta, 0)
  composed = exclusive(LINEAR, linear)
  out = jnp.where(live, delta + step * composed[1], 0)
  return out, ((fill, filled), (linear, composed))
