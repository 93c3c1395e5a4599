"""Choosing a part of the rollouts or of the tokens: boolean masks of an exact size.

Sizes are traced numbers, so a schedule does not recompile. `candidates` says what may be chosen;
what it excludes, NaN included, plays no part.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_TIE = 1e-5  # variances this close are equal: sums in float32 do not tell them apart


def quota(share: Float[Array, ""], count: Int[Array, "*n"], least: int = 0) -> Int[Array, "*n"]:
  """round(share * count), at least `least` and at most `count`."""
  wanted = jnp.round(share * count.astype(share.dtype)).astype(jnp.int32)
  return jnp.minimum(jnp.maximum(wanted, least), count)


def ceil_share(share: Float[Array, ""], count: Int[Array, ""]) -> Int[Array, ""]:
  """ceil(share * count): a product that rounding has put just above a whole number is that one."""
  return jnp.ceil(share * count.astype(share.dtype) * (1 - 1e-6)).astype(jnp.int32)


def of_rollouts(
  best: Callable,
  score: Float[Array, "N G"],
  candidates: Bool[Array, "N G"],
  share: Float[Array, ""],
  *,
  in_groups: bool,
) -> Bool[Array, "N G"]:
  """`best`, one of the two below, for this share (at least 2) of the batch or of each group."""
  if in_groups:
    size = quota(share, jnp.sum(candidates, axis=1, dtype=jnp.int32), least=2)
    return jax.vmap(best)(score, candidates, size)
  size = quota(share, jnp.sum(candidates, dtype=jnp.int32), least=2)
  return best(score.reshape(-1), candidates.reshape(-1), size).reshape(score.shape)


def largest_variance(
  x: Float[Array, " M"], candidates: Bool[Array, " M"], size: Int[Array, ""]
) -> Bool[Array, " M"]:
  """argmax over subsets S of `size` candidates of Var(x_S) = mean of squares - squared mean.

  Exact: the best subset is the k smallest and the size - k largest for some k; all k are tried with
  prefix sums. Of equal variances that with the smallest |2 k - size|, then the smaller k; of equal
  x at the border the lower indices on the small side, the higher ones on the large side. Fewer
  candidates than `size`: all of them.
  """
  m = x.shape[0]
  count = jnp.sum(candidates, dtype=jnp.int32)
  size = jnp.minimum(size, count)
  order = jnp.argsort(jnp.where(candidates, x, jnp.inf), stable=True)
  rank = jnp.argsort(order).astype(jnp.int32)
  x = jnp.where(candidates, x, 0)
  x = jnp.where(candidates, x - jnp.sum(x) / jnp.maximum(count, 1).astype(x.dtype), 0)[order]
  k = jnp.arange(m + 1, dtype=jnp.int32)
  upper = jnp.clip(count - size + k, 0, m)  # ranks from here on are the size - k largest

  def total(y):
    prefix = jnp.concatenate([jnp.zeros_like(y[:1]), jnp.cumsum(y)])
    return (prefix + prefix[count] - prefix[upper]) / jnp.maximum(size, 1).astype(y.dtype)

  variance = jnp.where(k <= size, total(x * x) - total(x) ** 2, -jnp.inf)
  best = jnp.max(variance)
  tied = variance >= best - _TIE * jnp.maximum(best, 1)
  k = jnp.argmin(jnp.where(tied, jnp.abs(2 * k - size), 2 * m + 2)).astype(jnp.int32)
  return candidates & ((rank < k) | (rank >= count - size + k))


def top(
  score: Float[Array, "*shape"], candidates: Bool[Array, "*shape"], size: Int[Array, ""]
) -> Bool[Array, "*shape"]:
  """The `size` candidates of the highest score >= 0; of equal ones those of lower index.

  No sort: the bound is found bit by bit, by counting. So entries that are split over devices stay
  where they are, and only counts are added up.
  """
  score = jnp.where(candidates & (score > 0), score, 0).astype(jnp.float32)
  key = jax.lax.bitcast_convert_type(score, jnp.int32)  # orders as the floats do, from 0 on
  bound = _bound(key, candidates, size)
  above = candidates & (key > bound)
  ties = candidates & (key == bound)
  place = score.size - 1 - jnp.arange(score.size, dtype=jnp.int32).reshape(score.shape)
  missing = size - jnp.sum(above, dtype=jnp.int32)
  return above | (ties & (place >= _bound(place, ties, missing)))


def _bound(key, candidates, size):
  """The greatest number that at least `size` of the candidates' keys reach; 0 if they are fewer."""

  def one_bit(i, bound):
    trial = bound | jnp.left_shift(jnp.int32(1), (30 - i).astype(jnp.int32))
    enough = jnp.sum(candidates & (key >= trial), dtype=jnp.int32) >= size
    return jnp.where(enough, trial, bound)

  return jax.lax.fori_loop(0, 31, one_bit, jnp.int32(0))
