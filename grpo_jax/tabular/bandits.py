"""Algorithms for bandits without context: n_a pulls of arm a, mean m_a (0 before any), t = sum n_a.

From two papers, whose formulas differ: "dpt" is "Supervised Pretraining Can Learn In-Context
Reinforcement Learning" (arXiv:2306.14892), "evolve" is "EVOLvE" (arXiv:2410.06238, BanditBench);
both as in the released code. The linear algorithms and the offline rules are found here too.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from grpo_jax.core.bandit_counts import Counts, gaussian_posterior, no_pulls, pull
from grpo_jax.names import one_of
from grpo_jax.tabular.learner import Learner as Learner
from grpo_jax.tabular.learner import first_best
from grpo_jax.tabular.learner import play as play
from grpo_jax.tabular.linear import linucb as linucb
from grpo_jax.tabular.linear import linucb_disjoint as linucb_disjoint
from grpo_jax.tabular.linear import thompson_linear as thompson_linear
from grpo_jax.tabular.offline import emp_offline as emp_offline
from grpo_jax.tabular.offline import lcb_offline as lcb_offline
from grpo_jax.tabular.offline import linear_offline as linear_offline
from grpo_jax.tabular.offline import prefix_tallies as prefix_tallies
from grpo_jax.tabular.offline import tally as tally
from grpo_jax.tabular.offline import thompson_offline as thompson_offline
from grpo_jax.types import Record, record

_UCB = {"root_n": 1.0, "log_t": 0.5, "log_t_outside": 0.5}


def _counting(name: str, arms: int, act) -> Learner:
  """A learner whose memory is `Counts`; act(counts, key) -> i32[]."""
  return Learner(
    name=name,
    init=lambda: no_pulls(arms),
    act=lambda counts, key, context=None: act(counts, key),
    observe=lambda counts, action, reward, context=None: pull(counts, action, reward),
  )


def uniform(arms: int) -> Learner:
  """Any arm, whatever was seen."""
  return _counting("uniform", arms, lambda counts, key: jax.random.randint(key, (), 0, arms))


def emp(arms: int) -> Learner:
  """argmax_a m_a, after each arm once in order."""
  return _counting("emp", arms, lambda counts, key: first_best(counts.mean, counts.count))


def ucb(arms: int, *, c: float | None = None, form: str = "root_n") -> Learner:
  """argmax_a m_a + bonus_a, after each arm once in order; ties go to the first.

    form           bonus                  c if not given
    root_n         c / sqrt(n_a)          1     (DPT)
    log_t          sqrt(c log(t) / n_a)   0.5   (EVOLvE, the released code)
    log_t_outside  c sqrt(log(t) / n_a)   0.5   (EVOLvE, the formula of the text)

  With c = 0 it is `emp`. Raises UserError for another form.
  """
  one_of("ucb.form", form, _UCB)
  c = _UCB[form] if c is None else c

  def act(counts, key):
    del key
    n = jnp.maximum(counts.count, 1)
    log = jnp.log(jnp.maximum(jnp.sum(counts.count), 1))
    if form == "root_n":
      bonus = c / jnp.sqrt(n)
    elif form == "log_t":
      bonus = jnp.sqrt(c * log / n)
    else:
      bonus = c * jnp.sqrt(log / n)
    return first_best(counts.mean + bonus, counts.count)

  return _counting(f"ucb_{form}", arms, act)


def thompson_gaussian(
  arms: int, *, mean: float = 0.5, var: float = 1 / 12, noise: float = 0.3
) -> Learner:
  """argmax_a of a draw from `gaussian_posterior`: prior N(mean, var), rewards N(m, noise^2).

  The default prior has the two moments of U(0, 1) (dpt).
  """

  def act(counts, key):
    center, spread = gaussian_posterior(counts, mean=mean, var=var, noise=noise)
    return first_best(center + jnp.sqrt(spread) * jax.random.normal(key, (arms,)))

  return _counting("thompson_gaussian", arms, act)


def thompson_bernoulli(arms: int, *, a: float = 1.0, b: float = 1.0) -> Learner:
  """argmax_a of draws from Beta(a + sum r, b + n_a - sum r), for rewards in [0, 1] (evolve)."""

  def act(counts, key):
    alpha, beta = a + counts.total, b + counts.count - counts.total
    return first_best(jax.random.beta(key, alpha, beta))

  return _counting("thompson_bernoulli", arms, act)


@record
class Active(Record):
  counts: Counts
  active: Bool[Array, " A"]


def successive_elimination(arms: int, *, noise: float = 0.5, delta: float = 0.1) -> Learner:
  """The active arms in turn; an arm is dropped for good once m_a + rad_a < max_b (m_b - rad_b),

    rad_a = noise sqrt(2 log(4 A n_a^2 / delta) / n_a),

  which holds for all arms and times together with probability 1 - delta if the rewards are
  noise-sub-Gaussian (0.5: any rewards in [0, 1]). Even-Dar, Mannor and Mansour 2006, with a union
  bound of our own constants; neither paper has it.
  """

  def act(state, key, context=None):
    del key, context
    return first_best(jnp.where(state.active, -state.counts.count, -jnp.inf))

  def observe(state, action, reward, context=None):
    del context
    counts = pull(state.counts, action, reward)
    n = jnp.maximum(counts.count, 1)
    log = math.log(4 * arms / delta) + 2 * jnp.log(n)
    radius = jnp.where(counts.count > 0, noise * jnp.sqrt(2 * log / n), jnp.inf)
    low = jnp.max(jnp.where(state.active, counts.mean - radius, -jnp.inf))
    return Active(counts=counts, active=state.active & (counts.mean + radius >= low))

  return Learner(
    name="successive_elimination",
    init=lambda: Active(counts=no_pulls(arms), active=jnp.ones(arms, bool)),
    act=act,
    observe=observe,
  )
