"""Returns and generalized advantages along a row, right to left, skipping what the mask excludes.

Tool and padding slots between two trained tokens are no step in time: the next state of a token is
that of the next trained token of the same `segment` (i32[R, T], default: the whole row). So several
rollouts may share a row; one that is cut over two rows cannot be handled here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def discounted(
  reward: Float[Array, "R T"],
  mask: Float[Array, "R T"],
  gamma: float | Float[Array, "R T"],
  segment: Int[Array, "R T"] | None = None,
) -> Float[Array, "R T"]:
  """G_t = reward_t + gamma_t G_next, 0 off the mask and after the last trained token."""

  def step(after, now):
    reward, gamma = now
    return reward + gamma * after

  gamma = jnp.broadcast_to(jnp.asarray(gamma, reward.dtype), reward.shape)
  return _backward(step, (reward, gamma), mask, segment, jnp.zeros_like(reward[:, 0]))


def gae(
  reward: Float[Array, "R T"],
  value: Float[Array, "R T"],
  mask: Float[Array, "R T"],
  *,
  gamma: float,
  lam: float,
  segment: Int[Array, "R T"] | None = None,
) -> tuple[Float[Array, "R T"], Float[Array, "R T"]]:
  """A_t = delta_t + gamma lam A_next,  delta_t = reward_t + gamma V_next - V_t.

  Generalized advantage estimation, https://arxiv.org/abs/1506.02438, equation 16, as in PPO's 11.
  Returns (A, A + value): the advantages and the value targets, both 0 off the mask and without
  gradient. The value after the last token is 0: a rollout ends there, also a truncated one.
  """

  def step(after, now):
    reward, value = now
    delta = reward + gamma * after[1] - value
    return delta + gamma * lam * after[0], value

  zero = jnp.zeros_like(reward[:, 0])
  adv, value = jax.lax.stop_gradient(
    _backward(step, (reward, value), mask, segment, (zero, zero)),
  )
  return adv, adv + value


def _backward(step, columns, mask, segment, zero):
  """Scans `step(after, now) -> here` from the right, from zero again where the segment changes."""
  segment = jnp.zeros(mask.shape, jnp.int32) if segment is None else segment
  on = mask > 0
  columns = jax.tree.map(lambda x: jnp.where(on, x, 0), columns)

  def body(carry, now):
    after, segment_after = carry
    columns, segment, on = now
    same = segment == segment_after
    here = step(jax.tree.map(lambda a: jnp.where(same, a, 0), after), columns)
    carry = jax.tree.map(lambda h, a: jnp.where(on, h, a), (here, segment), carry)
    return carry, jax.tree.map(lambda h: jnp.where(on, h, 0), here)

  start = (zero, segment[:, -1])
  _, out = jax.lax.scan(
    body, start, jax.tree.map(jnp.transpose, (columns, segment, on)), reverse=True
  )
  return jax.tree.map(jnp.transpose, out)
