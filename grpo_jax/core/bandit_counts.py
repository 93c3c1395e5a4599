"""What is known of the arms of a bandit after some pulls. No gradients are meant to pass."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.types import Record, record


@record
class Counts(Record):
  """A sufficient statistic of pulls whose order does not matter; the last axis is the arm."""

  count: Float[Array, "*B A"]  # pulls n_a
  total: Float[Array, "*B A"]  # sum of the rewards

  @property
  def mean(self) -> Float[Array, "*B A"]:
    """total / max(1, n): 0 for an arm never pulled."""
    return self.total / jnp.maximum(self.count, 1)


def no_pulls(arms: int) -> Counts:
  return Counts(count=jnp.zeros(arms), total=jnp.zeros(arms))


def pull(counts: Counts, action: Int[Array, ""], reward: Float[Array, ""]) -> Counts:
  """The counts after one more pull."""
  hot = jax.nn.one_hot(action, counts.count.shape[-1], dtype=counts.count.dtype)
  return Counts(count=counts.count + hot, total=counts.total + hot * reward)


def gaussian_posterior(counts: Counts, *, mean: float, var: float, noise: float):
  """(mean, variance) [*B, A] of each arm: prior N(mean, var), rewards N(arm, noise^2).

    w = noise^2 / (noise^2 + n var),  mean' = w mean + (1 - w) total / max(1, n),  var' = w var

  The variance is 1 / (1 / var + n / noise^2). Without pulls it is the prior; noise = 0 gives the
  empirical mean with variance 0 after one pull.
  """
  weight = noise**2 / (noise**2 + counts.count * var)
  weight = jnp.where(counts.count > 0, weight, 1)
  return weight * mean + (1 - weight) * counts.mean, weight * var
