"""Films recommended to users who come: the contextual bandit of a matrix of ratings, in words."""

import dataclasses

from grpo_jax.data.movielens import Ratings
from grpo_jax.envs import contextual
from grpo_jax.envs.contextual.contextual_bandit import TRAIN_USERS, low_rank
from grpo_jax.envs.contextual.family import Family
from grpo_jax.systems.evolve_bandits import words

RANK = 20  # BanditBench's


def movies(
  ratings: Ratings,
  *,
  steps: int,
  heldout: bool,
  rank: int = RANK,
  features: int | None = None,
) -> tuple[Family, words.Scenario]:
  """(the bandit, its texts): its users are the first 200 or, `heldout`, all others, and state i is
  user i of the scenario. `features`: how many of the numbers x are written, from the greatest
  singular value on, each times sqrt(all users) (mean square 1) to 1 decimal; None: all of them.
  Raises UserError for too few ratings."""
  arms = len(ratings.titles)
  family = contextual.get(
    "contextual_bandit", arms=arms, dim=rank, steps=steps, noise=0.0, ratings=ratings.table,
    heldout_users=heldout,
  )  # fmt: skip
  mine = slice(TRAIN_USERS, None) if heldout else slice(TRAIN_USERS)
  contexts = low_rank(ratings.table, arms, rank)[0][mine]
  told = (contexts[:, :features] * len(ratings.users) ** 0.5).round(1) + 0.0
  numbers = [" ".join(f"{x:.1f}" for x in row) for row in told]
  users = tuple(
    f"{user}; {shown}".rstrip("; ")
    for user, shown in zip(ratings.users[mine], numbers, strict=True)
  )
  scene = dataclasses.replace(words.MOVIES, names=ratings.titles, users=users, contexts=contexts)
  return family, scene
