"""Statistics over the rollouts of a prompt (axis 1), and over a whole batch.

Arrays are [N, G] or [N, G, ...]; `alive` has the same shape. What is not alive is outside every
mean, deviation and count, may hold anything (NaN too), and gets 0. A group whose alive rewards are
all equal gets exactly 0, as does a group of one: in float32 the mean of eight 0.7s is not 0.7, and
dividing that residue by a small deviation gives advantages of order one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.names import one_of

SCALES = ("group", "batch", "none")
# Numbers that are equal on paper differ in float32 by their rounding, as a share of their size.
ROUNDING = 1e-6


def check(scale: str) -> None:
  """Raises UserError for a name that is not in SCALES."""
  one_of("scale", scale, SCALES)


def count(alive: Bool[Array, "N G *rest"]) -> Array:
  return jnp.sum(alive, axis=1, keepdims=True, dtype=jnp.int32)


def mean(x: Float[Array, "N G *rest"], alive: Bool[Array, "N G *rest"]) -> Array:
  """Mean over the alive of each group, [N, 1, ...]; 0 for an empty group."""
  return _ratio(jnp.sum(jnp.where(alive, x, 0), axis=1, keepdims=True), count(alive))


def std(x: Float[Array, "N G *rest"], alive: Bool[Array, "N G *rest"], *, ddof: int = 1) -> Array:
  """Standard deviation over the alive of each group, [N, 1, ...]; 0 where all are equal.

  ddof 1 (TRL, verl) and ddof 0 (the usual formula) differ by sqrt(G / (G - 1)): 7% at G = 8.
  """
  square = jnp.sum(center(x, alive) ** 2, axis=1, keepdims=True)
  return _root(_ratio(square, count(alive) - ddof))


def all_equal(x: Float[Array, "N G *rest"], alive: Bool[Array, "N G *rest"]) -> Array:
  """True for groups, [N, 1, ...], whose alive entries are all the same (or fewer than two)."""
  high = jnp.max(jnp.where(alive, x, -jnp.inf), axis=1, keepdims=True)
  low = jnp.min(jnp.where(alive, x, jnp.inf), axis=1, keepdims=True)
  return high <= low


def center(x: Float[Array, "N G *rest"], alive: Bool[Array, "N G *rest"]) -> Array:
  """r_i - mean(r)   (Dr.GRPO, https://arxiv.org/abs/2503.20783)."""
  return jnp.where(alive & ~all_equal(x, alive), jnp.where(alive, x, 0) - mean(x, alive), 0)


def sides(x: Float[Array, "N G *rest"], alive: Bool[Array, "N G *rest"]) -> tuple[Array, Array]:
  """(above, below) the mean of the group, for what decides by the sign of r_i - mean(r).

  Neither where the two differ by no more than rounding: of 0.1, 0.3 and 0.5 in float32 the middle
  one is not their mean.
  """
  size = jnp.max(jnp.where(alive, jnp.abs(x), 0), axis=1, keepdims=True)
  gap = center(x, alive)
  return gap > ROUNDING * size, gap < -ROUNDING * size


def leave_one_out(x: Float[Array, "N G *rest"], alive: Bool[Array, "N G *rest"]) -> Array:
  """r_i - mean of the others = k / (k - 1) (r_i - mean(r)), k alive (RLOO, 2402.14740)."""
  k = count(alive).astype(x.dtype)
  return center(x, alive) * (k / jnp.maximum(k - 1, 1))


def standardize(
  x: Float[Array, "N G *rest"],
  alive: Bool[Array, "N G *rest"],
  *,
  ddof: int = 1,
  eps: float = 1e-4,
  scale: str = "group",
) -> Array:
  """(r_i - mean(r)) / (s + eps)   (GRPO, https://arxiv.org/abs/2402.03300, section 4.1.2).

  scale: "group"  s is the deviation inside the group
         "batch"  s is the deviation of all alive rewards of the batch, not centered by group
         "none"   no division: `center`
  """
  check(scale)
  if scale == "none":
    return center(x, alive)
  s = std(x, alive, ddof=ddof) if scale == "group" else batch_std(x, alive, ddof=ddof)
  return center(x, alive) / (s + eps)


def batch_std(x: Array, alive: Array, *, ddof: int = 1) -> Array:
  """Deviation of all alive entries, with the rank of x; 0 if they are all equal."""
  return jnp.reshape(std(x.reshape(1, -1), alive.reshape(1, -1), ddof=ddof), (1,) * x.ndim)


def batch_center(x: Array, alive: Array) -> Array:
  """x minus the mean over everything alive; exactly 0 if all are equal."""
  return center(x.reshape(1, -1), alive.reshape(1, -1)).reshape(x.shape)


def whiten(x: Array, alive: Array, *, ddof: int = 1, eps: float = 1e-8) -> Array:
  """(x - mean) / (std + eps) over everything alive: [N, G] rewards or [R, T] advantages."""
  return batch_center(x, alive) / (batch_std(x, alive, ddof=ddof) + eps)


def _ratio(total, number):
  return total / jnp.maximum(number, 1).astype(total.dtype)


def _root(x):
  positive = x > 0
  return jnp.where(positive, jax.lax.sqrt(jnp.where(positive, x, 1)), 0)
