"""Contextual bandits: the state is which user came, an arm is an item, a task is their taste.

  reward(x, a) = x . w_a + N(0, noise^2),   x one of U users, uniformly, a new one after every step

as in BanditBench ("EVOLvE", arXiv:2410.06238, from its code), where the ratings R ~ U Sigma V^T of
users and items are cut to rank k = min(20, A), x = U_i, w_a = Sigma V_a, and noise = 0. `low_rank`
makes users and weights of a rating matrix (`data.movielens`): there the task is one and the same,
and the users are its first 200 (for training) or the others.
Without ratings, a synthetic stand-in of ours: x ~ N(0, I_d) / sqrt(d) fixed by a seed for all
tasks, w_a ~ N(0, I_d) drawn for each.

Contexts are pulled by DPT's random policies (see `bandit`), which do not look at the user.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpo_jax.core.transitions import Transitions
from grpo_jax.envs.contextual.bandit import behaviour, choose
from grpo_jax.envs.contextual.family import Family
from grpo_jax.envs.world import check
from grpo_jax.errors import UserError
from grpo_jax.types import Record, record

TRAIN_USERS = 200  # BanditBench's split of MovieLens


@record
class Task(Record):
  weight: Float[Array, "A d"]


def make(
  *,
  arms: int = 10,
  dim: int = 5,
  steps: int = 200,
  noise: float = 0.1,
  users: int = 200,
  seed: int = 1234,
  ratings: np.ndarray | None = None,
  heldout_users: bool = False,
) -> Family:
  """`ratings` f32[users, items], 0 where missing: its first `arms` items, at rank min(dim, arms);
  then `users` and `seed` are not read, and `heldout_users` takes the users from the 201st on.

  Raises UserError for values out of range and for ratings that are too few.
  """
  check("contextual_bandit.arms", arms, 1, 10_000)
  check("contextual_bandit.dim", dim, 1, 1000)
  check("contextual_bandit.steps", steps, 1)
  check("contextual_bandit.noise", noise, 0)
  check("contextual_bandit.users", users, 1)
  if ratings is None:
    pool = np.random.RandomState(seed).normal(size=(users, dim)) / np.sqrt(dim)
    task = lambda key: Task(weight=jax.random.normal(key, (arms, dim)))
  else:
    pool, taste = low_rank(ratings, arms, dim)
    pool = pool[TRAIN_USERS:] if heldout_users else pool[:TRAIN_USERS]
    if not len(pool):
      raise UserError(f"contextual_bandit.ratings: {len(ratings)} users, give over {TRAIN_USERS}")
    task = lambda key: Task(weight=jnp.asarray(taste))
  pool = pool.astype(np.float32)
  observe = lambda state: jnp.asarray(pool)[state]
  scores = lambda task, state: task.weight @ observe(state)

  def come(task, key):
    return jax.random.randint(key, (), 0, len(pool))

  def step(task, state, action, key):
    error, who = jax.random.split(key)
    reward = task.weight[action] @ observe(state) + noise * jax.random.normal(error)
    return come(task, who), reward

  def behave(task, key, steps):
    policy, choice, who, errors = jax.random.split(key, 4)
    action = choose(choice, behaviour(policy, arms), steps)
    came = jnp.asarray(pool)[jax.random.randint(who, (steps + 1,), 0, len(pool))]
    reward = jnp.sum(task.weight[action] * came[:-1], axis=1)
    reward += noise * jax.random.normal(errors, (steps,))
    return Transitions(state=came[:-1], action=action, next_state=came[1:], reward=reward)

  return Family(
    name="contextual_bandit",
    observation=pool.shape[1],
    actions=arms,
    horizon=1,
    steps=steps,
    task=task,
    start=come,
    step=step,
    observe=observe,
    label=lambda task, state: jnp.argmax(scores(task, state)).astype(jnp.int32),
    mean=lambda task, state, action: scores(task, state)[action],
    behave=behave,
    query=come,
    best=lambda task: jnp.mean(jnp.max(jnp.asarray(pool) @ task.weight.T, axis=1)),
    states=len(pool),
    index=lambda state: state,
  )


def low_rank(ratings, arms: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """(U f[users, k], Sigma V f[arms, k]) of the first `arms` items, k = min(rank, arms), by SVD.

  U Sigma V^T is the best approximation of that rank. Raises UserError for too few items or users.
  """
  table = np.asarray(ratings, np.float64)
  if table.ndim != 2 or table.shape[1] < arms or len(table) < arms:
    raise UserError(
      f"contextual_bandit.ratings: shape {table.shape}, give at least {arms} users and items"
    )
  u, sigma, v = np.linalg.svd(table[:, :arms], full_matrices=False)
  k = min(rank, arms)
  return u[:, :k], (sigma[:k, None] * v[:k]).T.astype(np.float32)
