"""Linear bandits: the arms have features that all tasks share, and a task is a weight vector.

"Supervised Pretraining Can Learn In-Context Reinforcement Learning" (DPT, arXiv:2306.14892, from
its code): phi_a ~ N(0, I_d) / sqrt(d) drawn once (numpy's RandomState(1234)), theta ~
N(0, I_d) / sqrt(d), mean_a = phi_a . theta, rewards N(mean_a, noise^2). Contexts come from a
Thompson sampler that does not know the features: prior N(0, 1) for each arm by itself. It adapts,
so contexts keep their order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpo_jax.core.bandit_counts import gaussian_posterior, no_pulls, pull
from grpo_jax.envs.contextual.bandit import of_arms
from grpo_jax.envs.contextual.family import Family
from grpo_jax.envs.world import check
from grpo_jax.types import Record, record


@record
class Task(Record):
  mean: Float[Array, " A"]  # features @ theta
  theta: Float[Array, " d"]


def features(arms: int = 10, dim: int = 2, seed: int = 1234) -> np.ndarray:
  """phi f32[A, d], the same for all tasks; for the learners that may know them."""
  draws = np.random.RandomState(seed).normal(size=(arms, dim))
  return (draws / np.sqrt(dim)).astype(np.float32)


def make(
  *, arms: int = 10, dim: int = 2, steps: int = 200, noise: float = 0.3, seed: int = 1234
) -> Family:
  """`noise`: standard deviation of the rewards; `seed`: of the features.

  Raises UserError for values out of range.
  """
  check("linear_bandit.arms", arms, 1, 10_000)
  check("linear_bandit.dim", dim, 1, 1000)
  check("linear_bandit.steps", steps, 1)
  check("linear_bandit.noise", noise, 0)
  phi = features(arms, dim, seed)

  def task(key):
    theta = jax.random.normal(key, (dim,)) / dim**0.5
    return Task(mean=jnp.asarray(phi) @ theta, theta=theta)

  pay = lambda mean, key: mean + noise * jax.random.normal(key, mean.shape)
  pulls = lambda task, key, steps: structure_blind(task.mean, key, steps, noise)
  return of_arms("linear_bandit", arms, steps, task, pay, pulls, shuffle=False)


def structure_blind(mean: Float[Array, " A"], key: Array, steps: int, noise: float):
  """(action i32[H], reward f32[H]) of Gaussian Thompson sampling, prior N(0, 1) for each arm."""
  beliefs, errors = jax.random.split(key)
  draws = jax.random.normal(beliefs, (steps, mean.shape[0]))
  error = noise * jax.random.normal(errors, (steps,))

  def one(counts, now):
    draw, error = now
    center, var = gaussian_posterior(counts, mean=0.0, var=1.0, noise=noise)
    action = jnp.argmax(center + jnp.sqrt(var) * draw).astype(jnp.int32)
    reward = mean[action] + error
    return pull(counts, action, reward), (action, reward)

  return jax.lax.scan(one, no_pulls(mean.shape[0]), (draws, error))[1]
