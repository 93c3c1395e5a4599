"""Values and advantages on rollouts that branch (`Rollouts.parent`); a group is a tree of depth 1.

The value of a node is its reward if nothing alive grows from it, else the mean value of its alive
children. What is not alive is outside every mean, may hold anything (NaN too), and gets 0. Without
`Rollouts.parent` all rollouts are children of the prompt. Memory is N G^2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core import groups
from grpo_jax.names import one_of
from grpo_jax.types import Rollouts

MODES = ("rloo", "grpo")


def check(mode: str) -> None:
  """Raises UserError for a name that is not in MODES."""
  one_of("mode", mode, MODES)


def children(rollouts: Rollouts) -> Bool[Array, "N G G+1"]:
  """[n, c, p]: c is an alive child of p, where p = 0 is the prompt and p = i + 1 is rollout i."""
  n, g = rollouts.alive.shape
  parent = jnp.full((n, g), -1) if rollouts.parent is None else rollouts.parent
  family = parent[:, :, None] == jnp.arange(-1, g, dtype=parent.dtype)[None, None]
  return family & rollouts.alive[:, :, None]


def values(rollouts: Rollouts, depth: int) -> tuple[Float[Array, "N G"], Float[Array, " N"]]:
  """(value of every node, value of the prompt) of trees of at most `depth` levels."""
  family = children(rollouts)
  reward = jnp.where(rollouts.alive, rollouts.reward, 0)
  value, inner = reward, jnp.any(family, axis=1)
  for _ in range(depth):
    mean = _mean(value, family)
    value = jnp.where(inner[:, 1:] & rollouts.alive, mean[:, 1:], reward)
  return value, _mean(value, family)[:, 0]


def edge_advantage(
  rollouts: Rollouts, depth: int, *, mode: str = "rloo", eps: float = 1e-8
) -> Float[Array, "N G"]:
  """Advantage of the edge into every node, 0 where the children of its parent are worth the same.

  rloo  V(c) - V(parent): the mean of all children, not leave-one-out in spite of the name
  grpo  (V(c) - V(parent)) / (s + eps), s the deviation of the children's values with ddof 0
  """
  check(mode)
  family = children(rollouts)
  value, _ = values(rollouts, depth)
  spread = jnp.broadcast_to(value[:, :, None], family.shape)
  adv = groups.center(spread, family)
  size = jnp.max(jnp.where(family, jnp.abs(spread), 0), axis=1, keepdims=True)
  # Means that are equal on paper: divided by a deviation made of the same rounding, they would
  # become advantages of order one.
  tiny = jnp.max(jnp.abs(adv), axis=1, keepdims=True) <= groups.ROUNDING * size
  adv = jnp.where(tiny, 0, adv)
  if mode == "grpo":
    adv = adv / (groups.std(spread, family, ddof=0) + eps)
  return jnp.sum(adv, axis=2)


def _mean(value, family):
  """Mean over the children of every parent, exactly their value where they are all equal."""
  spread = jnp.broadcast_to(value[:, :, None], family.shape)
  same = groups.all_equal(spread, family)
  one = jnp.max(jnp.where(family, spread, -jnp.inf), axis=1, keepdims=True)
  mean = jnp.where(same, one, groups.mean(spread, family))
  return jnp.where(jnp.any(family, axis=1), mean[:, 0], 0)
