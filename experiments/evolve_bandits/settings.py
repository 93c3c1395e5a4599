"""The bandits that are played, by `data` of the config: arms of a scenario, or films for users."""

import functools
from typing import Any, NamedTuple

from grpo_jax.data import movielens
from grpo_jax.envs import contextual as families
from grpo_jax.envs.contextual.family import Family
from grpo_jax.errors import UserError
from grpo_jax.names import unknown
from grpo_jax.systems.evolve_bandits import words
from grpo_jax.systems.evolve_bandits.movies import movies
from grpo_jax.tabular import bandits
from grpo_jax.tabular.learner import Learner

ARMS = ("scenario", "arms", "gap", "steps")
FILMS = ("scenario", "source", "path", "seed", "arms", "rank", "features", "steps")


class Bandit(NamedTuple):
  family: Family
  scene: words.Scenario


def contextual(data: Any) -> bool:
  return data.scenario == "movies"


def check(data: Any) -> None:
  """UserError for a field that is not read, and for what has no texts."""
  known = FILMS if contextual(data) else ARMS
  for name in known:
    if name not in data:
      raise UserError(
        f"data.{name}: missing for scenario {data.scenario!r}; films are played by "
        "--config=configs/evolve_bandits.py:contextual, arms without it"
      )
  for name in data:
    if name not in known:
      raise unknown("data", name, known)
  if not contextual(data):
    words.scenario(data.scenario, data.arms)
    return
  for name in ("rank", "features"):
    if data[name] < (name == "rank"):
      raise UserError(f"data.{name}={data[name]}: must be at least {int(name == 'rank')}")
  bandit(data, heldout=True)


def oracles(data: Any) -> dict[str, Learner]:
  """By name; the first is the one that is shown and imitated."""
  arms = data.arms
  if contextual(data):
    dim = min(data.rank, arms)
    return {
      "linucb": bandits.linucb_disjoint(arms, dim),
      "greedy": bandits.linucb_disjoint(arms, dim, c=0.0),
      "uniform": bandits.uniform(arms),
    }
  return {
    "ucb": bandits.ucb(arms, form="log_t"),
    "thompson": bandits.thompson_bernoulli(arms),
    "greedy": bandits.emp(arms),
    "uniform": bandits.uniform(arms),
  }


def bandit(data: Any, heldout: bool) -> Bandit:
  """`heldout`: of films, for the users who are not the first 200; arms are always drawn anew."""
  if contextual(data):
    found = _ratings(data.source, data.arms, data.path, data.seed)
    options = {"rank": data.rank, "features": data.features}
    return Bandit(*movies(found, steps=data.steps, heldout=heldout, **options))
  family = families.get(
    "bandit", arms=data.arms, steps=data.steps, reward="bernoulli", means="gap", gap=data.gap
  )
  return Bandit(family, words.scenario(data.scenario, data.arms))


@functools.cache
def _ratings(source: str, arms: int, path: str, seed: int) -> movielens.Ratings:
  return movielens.load(source, arms, path=path or None, seed=seed)
