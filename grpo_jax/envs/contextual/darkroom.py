"""Darkroom: a goal that is not seen, on a grid of n x n cells.

The state is the cell (x, y). Actions: x + 1, x - 1, y + 1, y - 1, stay; walls hold one back. The
reward is 1 at every step that ends on the goal, and only the horizon ends an episode. As in
DPT's code (arXiv:2306.14892): n = 10, horizon and context of 100 steps, start at (0, 0), the goals
shuffled with seed 0 and split 80 to 20; contexts are independent transitions from uniform cells by
uniform actions, and query cells are uniform. Label: first along x, then along y, then stay.

"Algorithm Distillation" (arXiv:2210.14215): n = 9, horizon 20, start in the middle (recalled).
`permuted`: the goal is (n - 1, n - 1), and action a does what perm[a] does: 120 tasks, split in the
same way (the split of those is our reading).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from grpo_jax.envs.contextual.family import Family, draw, independent, split
from grpo_jax.envs.world import check
from grpo_jax.names import one_of
from grpo_jax.types import Record, record

MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))
ACTIONS = len(MOVES)


@record
class Task(Record):
  goal: Int[Array, " 2"]
  perm: Int[Array, " 5"]  # action a makes the move perm[a]


def make(
  *,
  n: int = 10,
  horizon: int = 100,
  steps: int = 100,
  permuted: bool = False,
  start: str = "corner",
  seed: int = 0,
) -> Family:
  """`start`: "corner" (0, 0) or "center" (n // 2, n // 2); `seed`: of the split.

  Raises UserError for values out of range.
  """
  check("darkroom.n", n, 2, 100)
  check("darkroom.horizon", horizon, 1)
  check("darkroom.steps", steps, 1)
  origin = corner_or_center("darkroom", start, n)
  train, heldout = (tasks(n, permuted, ids) for ids in split(120 if permuted else n * n, seed=seed))

  def step(task, state, action, key):
    del key
    cell = move(state, jnp.asarray(task.perm)[action], n)
    return cell, jnp.all(cell == task.goal).astype(jnp.float32)

  def label(task, state):
    return jnp.argmax(task.perm == toward(state, task.goal)).astype(jnp.int32)

  def best(task):
    # the first step onto the goal already pays, so one that starts there gains nothing by it
    away = jnp.sum(jnp.abs(task.goal - jnp.asarray(origin, jnp.int32)))
    return jnp.maximum(horizon - jnp.maximum(away - 1, 0), 0).astype(jnp.float32)

  query = lambda task, key: jax.random.randint(key, (2,), 0, n)
  observe = lambda state: state.astype(jnp.float32)
  act = lambda key: jax.random.randint(key, (), 0, ACTIONS)
  return Family(
    name="darkroom",
    observation=2,
    actions=ACTIONS,
    horizon=horizon,
    steps=steps,
    task=lambda key: draw(train, key),
    start=lambda task, key: jnp.asarray(origin, jnp.int32),
    step=step,
    observe=observe,
    label=label,
    mean=lambda task, state, action: step(task, state, action, None)[1],
    behave=lambda task, key, steps: independent(
      task, key, steps, query=query, act=act, step=step, observe=observe
    ),
    query=query,
    best=best,
    train=train,
    heldout=heldout,
    states=n * n,
    index=lambda state: state[0] * n + state[1],
    recall=lambda seen: seen.astype(jnp.int32),
  )


def tasks(n: int, permuted: bool, ids: np.ndarray) -> Task:
  """The tasks with these ids, stacked: goal (id // n, id % n), or the id-th permutation."""
  if permuted:
    perms = np.asarray(list(itertools.permutations(range(ACTIONS))), np.int32)[ids]
    return Task(goal=np.full((len(ids), 2), n - 1, np.int32), perm=perms)  # pyright: ignore
  goal = np.stack([ids // n, ids % n], axis=1).astype(np.int32)
  same = np.tile(np.arange(ACTIONS, dtype=np.int32), (len(ids), 1))
  return Task(goal=goal, perm=same)  # pyright: ignore


def corner_or_center(family: str, start: str, n: int) -> tuple[int, int]:
  """Raises UserError for any other start."""
  one_of(f"{family}.start", start, ("corner", "center"))
  return (0, 0) if start == "corner" else (n // 2, n // 2)


def move(cell: Int[Array, " 2"], way: Int[Array, ""], n: int) -> Int[Array, " 2"]:
  """Where one stands after a move; a wall holds one back."""
  return jnp.clip(cell + jnp.asarray(MOVES, jnp.int32)[way], 0, n - 1)


def toward(cell: Int[Array, " 2"], goal: Int[Array, " 2"]) -> Int[Array, ""]:
  """The move of a shortest path: first along x, then along y; stay at the goal."""
  x, y = goal[0] - cell[0], goal[1] - cell[1]
  along_y = jnp.where(y > 0, 2, jnp.where(y < 0, 3, 4))
  return jnp.where(x > 0, 0, jnp.where(x < 0, 1, along_y)).astype(jnp.int32)
