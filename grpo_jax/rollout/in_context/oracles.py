"""What an in-context learner of bandits is measured against: online learners and offline rules.

Which ones is decided by the family; their numbers (noise, prior) are the family's own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core.transitions import Transitions
from grpo_jax.envs.contextual import linear_bandit
from grpo_jax.envs.contextual.family import Family
from grpo_jax.tabular import bandits
from grpo_jax.tabular.posterior import best_arm_bernoulli


def learners(family: Family, params: dict) -> dict[str, bandits.Learner]:
  """Online learners by the name that a plot shows; `params`: what the family was made with.

  Thompson sampling believes in the two moments of U(0, 1), which is the prior of Gaussian bandits;
  of linear ones it is the structure-blind N(0, 1) that made their contexts.
  """
  arms, noise = family.actions, params.get("noise", 0.3)
  own = {"emp": bandits.emp(arms), "ucb": bandits.ucb(arms)}
  if family.name == "linear_bandit":
    phi = _features(arms, params)
    return own | {
      "thompson": bandits.thompson_gaussian(arms, mean=0.0, var=1.0, noise=noise),
      "linucb": bandits.linucb(phi),
      "thompson_linear": bandits.thompson_linear(phi, noise=noise),
    }
  if params.get("reward", "gaussian") == "bernoulli":
    return own | {"thompson": bandits.thompson_bernoulli(arms)}
  return own | {"thompson": bandits.thompson_gaussian(arms, noise=noise)}


def _features(arms: int, params: dict) -> Array:
  return jnp.asarray(linear_bandit.features(arms, params.get("dim", 2), params.get("seed", 1234)))


def rules(family: Family, params: dict) -> dict[str, Callable[[Any, Array], Array]]:
  """Offline rules: (counts, key) -> the arm to take."""
  noise = params.get("noise", 0.3)
  out = {
    "emp": lambda counts, key: bandits.emp_offline(counts),
    "lcb": lambda counts, key: bandits.lcb_offline(counts),
  }
  if family.name == "linear_bandit":
    phi = _features(family.actions, params)
    return out | {
      "thompson": lambda c, key: bandits.thompson_offline(c, key, noise=noise, mean=0.0, var=1.0),
      "linear": lambda counts, key: bandits.linear_offline(counts, phi),
    }
  if params.get("reward", "gaussian") == "bernoulli":
    return out  # the Gaussian posterior is not theirs
  return out | {"thompson": lambda c, key: bandits.thompson_offline(c, key, noise=noise)}


def online(
  family: Family, params: dict, tasks: Any, key: Array, steps: int
) -> dict[str, Float[Array, "B T"]]:
  """Suboptimality of every pull, by learner; tasks stacked [B]."""
  keys = jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0])
  out = {}
  for name, learner in learners(family, params).items():
    played = jax.vmap(lambda t, k, one=learner: bandits.play(one, family, t, k, steps))(tasks, keys)
    out[name] = played.suboptimality
  return out


def offline(
  family: Family, params: dict, tasks: Any, states: Any, data: Transitions, key: Array
) -> dict[str, Float[Array, "B n"]]:
  """Suboptimality after 0, 1, ..., H transitions of each context, by rule."""
  counts = tallies(family, data)
  keys = jax.random.split(key, data.reward.shape[0])

  def one(rule, task, state, counts, key):
    actions = rule(counts, key)
    return jax.vmap(lambda a: family.lost(task, state, a))(actions)

  return {
    name: jax.vmap(lambda t, s, c, k, rule=rule: one(rule, t, s, c, k))(tasks, states, counts, keys)
    for name, rule in rules(family, params).items()
  }


def tallies(family: Family, data: Transitions):
  """Counts [B, H + 1, A] of all prefixes."""
  count = lambda action, reward: bandits.prefix_tallies(action, reward, family.actions)
  return jax.vmap(count)(data.action, data.reward)


def posterior(family: Family, params: dict, data: Transitions) -> Float[Array, "B n A"] | None:
  """P(best arm | prefix), exactly, for Bernoulli arms of prior U(0, 1); None for other families."""
  known = family.name == "bandit" and params.get("reward") == "bernoulli"
  if not known or params.get("means", "uniform") != "uniform":
    return None
  return jax.lax.map(lambda c: best_arm_bernoulli(c, points=1024), tallies(family, data))
