"""Algorithms that know features: of the arms (linear bandits) or of the context (one model an arm).

All keep a Gaussian belief N(mean, cov) over weights, moved by one observation r of x . theta:
  k = cov x / (noise^2 + x cov x),  mean <- mean + k (r - x . mean),  cov <- cov - k (cov x)^T
which is (I / prior + sum x x^T / noise^2)^-1 without an inversion. With prior = noise = 1 it is
ridge regression: cov = A^-1 for A = I + sum x x^T, mean = A^-1 sum r x.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.tabular.learner import Learner, first_best
from grpo_jax.types import Record, record

_TIE = 1e-5


@record
class Belief(Record):
  mean: Float[Array, "*A d"]
  cov: Float[Array, "*A d d"]


def believe(dim: int, prior: float = 1.0) -> Belief:
  return Belief(mean=jnp.zeros(dim), cov=prior * jnp.eye(dim))


def learn(belief: Belief, x: Float[Array, " d"], reward, noise: float = 1.0) -> Belief:
  """The belief after one observation, see above."""
  spread = belief.cov @ x
  gain = spread / (noise**2 + x @ spread)
  mean = belief.mean + gain * (reward - x @ belief.mean)
  return Belief(mean=mean, cov=belief.cov - jnp.outer(gain, spread))


def linucb(features: Float[Array, "A d"], *, c: float = 1.0) -> Learner:
  """argmax_a phi_a . theta + c sqrt(phi_a A^-1 phi_a): A = I + sum phi phi^T (dpt, paper 27).

  The first of several best. The released code draws the very first arm at random instead.
  """
  phi = jnp.asarray(features)

  def act(belief, key, context=None):
    del key, context
    width = jnp.sum((phi @ belief.cov) * phi, axis=1)
    return first_best(phi @ belief.mean + c * jnp.sqrt(jnp.maximum(width, 0)))

  return Learner(
    name="linucb",
    init=lambda: believe(phi.shape[1]),
    act=act,
    observe=lambda belief, action, reward, context=None: learn(belief, phi[action], reward),
  )


def thompson_linear(
  features: Float[Array, "A d"], *, prior: float | None = None, noise: float = 0.3
) -> Learner:
  """argmax_a phi_a . theta of a draw theta from the posterior: prior N(0, prior I), rewards
  N(phi . theta, noise^2). `prior`: if not given 1 / d, that of DPT's linear bandits, for which this
  is exact posterior sampling. `noise` above 0."""
  phi = jnp.asarray(features)
  dim = phi.shape[1]

  def act(belief, key, context=None):
    del context
    root = jnp.linalg.cholesky(belief.cov)
    theta = belief.mean + root @ jax.random.normal(key, (dim,))
    return first_best(phi @ theta)

  return Learner(
    name="thompson_linear",
    init=lambda: believe(dim, 1 / dim if prior is None else prior),
    act=act,
    observe=lambda belief, action, reward, context=None: learn(belief, phi[action], reward, noise),
  )


def linucb_disjoint(arms: int, dim: int, *, c: float = 0.5) -> Learner:
  """A model an arm of the context x: argmax_a theta_a . x + c sqrt(x A_a^-1 x), A_a = I + sum x x^T
  over the pulls of a (evolve, paper 26). Scores within 1e-5 of the best are tied; a tie is broken
  at random, evenly (the released code favours the first)."""

  def act(belief, key, context):
    spread = jnp.einsum("aij,j->ai", belief.cov, context)
    score = belief.mean @ context + c * jnp.sqrt(jnp.maximum(spread @ context, 0))
    tied = score >= jnp.max(score) - _TIE
    return first_best(jnp.where(tied, jax.random.uniform(key, (arms,)), -1.0))

  def observe(belief, action, reward, context):
    one = jax.tree.map(lambda x: x[action], belief)
    return jax.tree.map(lambda x, y: x.at[action].set(y), belief, learn(one, context, reward))

  many = lambda x: jnp.tile(x[None], (arms, *[1] * x.ndim))
  init = lambda: jax.tree.map(many, believe(dim))
  return Learner(name="linucb_disjoint", init=init, act=act, observe=observe)
