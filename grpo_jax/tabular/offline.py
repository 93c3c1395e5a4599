"""Which arm to take after a data set of pulls: rules for `Counts` [*B, A] -> i32[*B].

`tally` counts one data set, `prefix_tallies` all of its beginnings: `rule(prefix_tallies(...))` is
the whole curve of suboptimality against size. DPT's baselines (arXiv:2306.14892, from its code).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.core.bandit_counts import Counts, gaussian_posterior


def tally(action: Int[Array, " H"], reward: Float[Array, " H"], arms: int) -> Counts:
  """Counts [A] of the data set; without pulls all 0."""
  hot = jax.nn.one_hot(action, arms, dtype=reward.dtype)
  return Counts(count=jnp.sum(hot, axis=0), total=reward @ hot)


def prefix_tallies(action: Int[Array, " H"], reward: Float[Array, " H"], arms: int) -> Counts:
  """Counts [H + 1, A] of the first 0, 1, ..., H pulls."""
  hot = jax.nn.one_hot(action, arms, dtype=reward.dtype)
  sums = lambda x: jnp.pad(jnp.cumsum(x, axis=0), ((1, 0), (0, 0)))
  return Counts(count=sums(hot), total=sums(hot * reward[:, None]))


def _best(score):
  return jnp.argmax(score, axis=-1).astype(jnp.int32)


def emp_offline(counts: Counts) -> Int[Array, "*B"]:
  """argmax_a m_a; an arm never pulled has m_a = 0."""
  return _best(counts.mean)


def lcb_offline(counts: Counts, *, c: float = 0.8) -> Int[Array, "*B"]:
  """Pessimism: argmax_a m_a - c / sqrt(max(1, n_a))."""
  return _best(counts.mean - c / jnp.sqrt(jnp.maximum(counts.count, 1)))


def thompson_offline(
  counts: Counts,
  key: Array,
  *,
  mean: float = 0.5,
  var: float = 1 / 12,
  noise: float = 0.3,
  draws: int = 100,
) -> Int[Array, "*B"]:
  """The arm that is best most often in `draws` draws of `gaussian_posterior`, the first of several.
  draws = 1 is a plain Thompson sample."""
  center, spread = gaussian_posterior(counts, mean=mean, var=var, noise=noise)
  normal = jax.random.normal(key, (draws, *center.shape))
  best = jnp.argmax(center[None] + jnp.sqrt(spread)[None] * normal, axis=-1)
  votes = jnp.sum(jax.nn.one_hot(best, center.shape[-1], dtype=jnp.int32), axis=0)
  return _best(votes)


def linear_offline(counts: Counts, features: Float[Array, "A d"]) -> Int[Array, "*B"]:
  """Ridge regression on the features: argmax_a phi_a . theta, theta = (I + sum phi phi^T)^-1
  sum r phi. LinUCB without its bonus."""
  phi = jnp.asarray(features)
  gram = jnp.einsum("...a,ai,aj->...ij", counts.count, phi, phi)
  eye = jnp.broadcast_to(jnp.eye(phi.shape[1]), gram.shape)
  moment = jnp.einsum("...a,ai->...i", counts.total, phi)
  theta = jnp.linalg.solve(gram + eye, moment[..., None])[..., 0]
  return _best(jnp.einsum("...i,ai->...a", theta, phi))
