"""The specification of group advantages and of returns along a row: plain jnp, one formula each."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

KINDS = ("standardize", "leave_one_out", "ranks", "minmax", "whiten")
SCALES = ("group", "batch", "none")


def _per_group(reward, alive):
  """Count, mean and whether not all alive are equal, each [N, 1]; float32."""
  k = jnp.sum(alive, axis=1, keepdims=True, dtype=jnp.float32)
  high = jnp.max(jnp.where(alive, reward, -jnp.inf), axis=1, keepdims=True)
  low = jnp.min(jnp.where(alive, reward, jnp.inf), axis=1, keepdims=True)
  total = jnp.sum(jnp.where(alive, reward, 0), axis=1, keepdims=True)
  return k, total / jnp.maximum(k, 1), high, low


def _deviation(reward, alive, ddof):
  k, mean, high, low = _per_group(reward, alive)
  square = jnp.sum(jnp.where(alive & (high > low), reward - mean, 0) ** 2, axis=1, keepdims=True)
  variance = square / jnp.maximum(k - ddof, 1)
  return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)


def batch_deviation(reward: Array, alive: Array, ddof: int) -> Array:
  """Of everything alive, [1, 1]; 0 where all are equal."""
  return _deviation(reward.reshape(1, -1), alive.reshape(1, -1), ddof)


def group_advantage(
  reward: Float[Array, "N G"],
  alive: Bool[Array, "N G"],
  *,
  kind: str,
  scale: str,
  ddof: int,
  eps: float,
) -> Float[Array, "N G"]:
  reward = jnp.where(alive, reward, 0).astype(jnp.float32)
  if kind == "whiten":
    flat = reward.reshape(1, -1), alive.reshape(1, -1)
    adv = group_advantage(*flat, kind="standardize", scale="group", ddof=ddof, eps=eps)
    return adv.reshape(reward.shape)
  k, mean, high, low = _per_group(reward, alive)
  live = alive & (high > low)
  center = jnp.where(live, reward - mean, 0)
  if kind == "leave_one_out":
    return center * (k / jnp.maximum(k - 1, 1))
  if kind == "minmax":
    return center / jnp.where(high > low, high - low + eps, 1)
  if kind == "ranks":
    sign = jnp.sign(reward[:, :, None] - reward[:, None, :])
    wins = jnp.sum(jnp.where(alive[:, None, :], sign, 0), axis=2)
    return jnp.where(live, wins / jnp.maximum(k - 1, 1), 0)
  if scale == "none":
    return center
  s = _deviation(reward, alive, ddof) if scale == "group" else batch_deviation(reward, alive, ddof)
  return center / (s + eps)


def ragged_advantage(
  reward: Float[Array, " R"], group: Int[Array, " R"], *, num_groups: int, **options: Any
) -> Float[Array, " R"]:
  """Every group as a row of the whole batch, in which the other groups are not alive."""
  member = group[None] == jnp.arange(num_groups, dtype=group.dtype)[:, None]  # [N, R]
  alive = jnp.any(member, axis=0)
  if options["kind"] == "whiten":
    return group_advantage(reward[None], alive[None], **options)[0]
  batch = options["kind"] == "standardize" and options["scale"] == "batch"
  once = {**options, "scale": "none"} if batch else options
  reward = jnp.where(alive, reward, 0).astype(jnp.float32)
  rows = jnp.broadcast_to(reward[None], member.shape)
  adv = jnp.sum(group_advantage(rows, member, **once), axis=0)
  if batch:
    adv = adv / (batch_deviation(reward, alive, options["ddof"])[0] + options["eps"])
  return adv


def backward_scan(
  reward: Float[Array, "R T"],
  mask: Float[Array, "R T"],
  decay: Float[Array, "R T"],
  *,
  value: Float[Array, "R T"] | None,
  last: Float[Array, "R T"] | None,
  gamma: Float[Array, "R 1"] | None,
  segment: Int[Array, "R T"] | None,
) -> Float[Array, "R T"]:
  """A_t = d_t + decay_t A_next, d_t = reward_t (+ gamma V_next - V_t), right to left.

  Next is the next token on the mask, of the same segment; without one A_next is 0, V_next `last_t`.
  """
  zero = jnp.zeros_like(reward)
  on = mask > 0
  value, last = (zero if x is None else jnp.where(on, x, 0) for x in (value, last))
  gamma = jnp.broadcast_to(jnp.float32(0) if gamma is None else gamma, reward.shape)
  segment = jnp.zeros(mask.shape, jnp.int32) if segment is None else segment
  decay = jnp.broadcast_to(decay, reward.shape)

  def step(after, now):
    seen, adv, value_next, segment_next = after
    on, reward, decay, gamma, value, last, segment = now
    linked = seen & (segment == segment_next)
    delta = reward + gamma * jnp.where(linked, value_next, last) - value
    here = delta + decay * jnp.where(linked, adv, 0)
    new = on | seen, here, value, segment
    after = jax.tree.map(lambda n, a: jnp.where(on, n, a), new, after)
    return after, jnp.where(on, here, 0)

  now = on, jnp.where(on, reward, 0), decay, gamma, value, last, segment
  start = jnp.zeros_like(on[:, 0]), zero[:, 0], zero[:, 0], jnp.zeros_like(segment[:, 0])
  _, out = jax.lax.scan(step, start, jax.tree.map(jnp.transpose, now), reverse=True)
  return out.T
