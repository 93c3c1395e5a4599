"""Plain XLA: groups by segment sums, and scans in log2(T) sweeps over whole rows.

A CPU does the scan token by token instead: it has no use for the width of a sweep.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.group_advantage import reference
from pallas_kernels.group_advantage.recurrence import FILL, LINEAR, advance

group_advantage = reference.group_advantage


def ragged_advantage(reward, group, *, num_groups, kind, scale, ddof, eps):
  alive = (group >= 0) & (group < num_groups)
  reward = jnp.where(alive, reward, 0).astype(jnp.float32)
  options = {"kind": kind, "scale": scale, "ddof": ddof, "eps": eps}
  if kind in ("whiten", "ranks"):  # one group; every pair of rollouts
    return reference.ragged_advantage(reward, group, num_groups=num_groups, **options)
  at = jnp.where(alive, group, num_groups)  # one group more, of those outside
  gather = lambda f, x: f(x, at, num_groups + 1)[at]
  k = gather(jax.ops.segment_sum, jnp.ones_like(reward))
  high, low = gather(jax.ops.segment_max, reward), gather(jax.ops.segment_min, reward)
  mean = gather(jax.ops.segment_sum, reward) / k
  live = alive & (high > low)
  center = jnp.where(live, reward - mean, 0)
  if kind == "leave_one_out":
    return center * (k / jnp.maximum(k - 1, 1))
  if kind == "minmax":
    return center / jnp.where(live, high - low + eps, 1)
  if scale == "none":
    return center
  if scale == "batch":
    return center / (reference.batch_deviation(reward, alive, ddof)[0] + eps)
  variance = gather(jax.ops.segment_sum, center**2) / jnp.maximum(k - ddof, 1)
  return center / (jnp.where(live, jnp.sqrt(jnp.where(live, variance, 1)), 0) + eps)


def exclusive(operator, items, carry):
  """What lies to the right of every column, and then `carry` [R, 1]."""
  wide = [jnp.concatenate([x[:, 1:], c], axis=1) for x, c in zip(items, carry, strict=True)]
  swapped = lambda right, left: operator.combine(left, right)
  return tuple(jax.lax.associative_scan(swapped, tuple(wide), axis=1, reverse=True))


def backward_scan(*args, **kwargs):
  scan = reference.backward_scan if jax.default_backend() == "cpu" else sweeps
  return scan(*args, **kwargs)


def sweeps(reward, mask, decay, *, value, last, gamma, segment):
  decay = jnp.broadcast_to(decay, reward.shape)
  zero = jnp.zeros_like(reward[:, :1])
  carry = {FILL: (zero, zero, jnp.zeros(zero.shape, jnp.int32)), LINEAR: (zero, zero)}
  out, _ = advance(
    lambda operator, items: exclusive(operator, items, carry[operator]),
    reward, (mask > 0).astype(jnp.float32), decay, value, last, gamma, segment,
  )  # fmt: skip
  return out
