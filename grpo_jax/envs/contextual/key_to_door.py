"""Dark Key-to-Door: a grid on which neither the key nor the door is seen.

Moves as in Darkroom. The reward is 1 at the step that ends on the key, once, and 1 at a later step
that ends on the door, once; then nothing is left to earn, and the horizon ends the episode. Tasks:
all n^4 pairs of cells (key = door is one of them), shuffled with seed 0, 80 to 20.

"Algorithm Distillation" (arXiv:2210.14215): n = 9, horizon 50, and only the cell is seen (recalled;
no paper of the list has it). With shown=True, the default, whether one has the key is seen too,
without which the label would not be a function of what is seen. Contexts and queries are our
reading, after DPT's for Darkroom: uniform cells, with the key or without, the door still closed.

Label: a shortest path to the key, then to the door, first along x; at an open door, stay.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from grpo_jax.envs.contextual.darkroom import ACTIONS, corner_or_center, move, toward
from grpo_jax.envs.contextual.family import Family, draw, independent, split
from grpo_jax.envs.world import check
from grpo_jax.types import Record, record


@record
class Task(Record):
  key: Int[Array, " 2"]
  door: Int[Array, " 2"]


@record
class State(Record):
  cell: Int[Array, " 2"]
  has: Bool[Array, ""]  # the key
  opened: Bool[Array, ""]


def make(
  *,
  n: int = 9,
  horizon: int = 50,
  steps: int = 100,
  shown: bool = True,
  start: str = "center",
  seed: int = 0,
) -> Family:
  """`start`: "corner" or "center"; `shown`: a third number of the observation, 1 with the key;
  `seed`: of the split. Raises UserError for values out of range."""
  check("key_to_door.n", n, 2, 20)
  check("key_to_door.horizon", horizon, 1)
  check("key_to_door.steps", steps, 1)
  origin = corner_or_center("key_to_door", start, n)
  train, heldout = (tasks(n, ids) for ids in split(n**4, seed=seed))

  def begin(task, key):
    del task, key
    cell, no = jnp.asarray(origin, jnp.int32), jnp.bool_(False)
    return State(cell=cell, has=no, opened=no)

  def step(task, state, action, key):
    del key
    cell = move(state.cell, action, n)
    takes = ~state.has & jnp.all(cell == task.key)
    opens = state.has & ~state.opened & jnp.all(cell == task.door)
    after = State(cell=cell, has=state.has | takes, opened=state.opened | opens)
    return after, (takes | opens).astype(jnp.float32)

  def observe(state):
    cell = state.cell.astype(jnp.float32)
    return jnp.append(cell, state.has.astype(jnp.float32)) if shown else cell

  def query(task, key):
    del task
    where, which = jax.random.split(key)
    cell = jax.random.randint(where, (2,), 0, n)
    return State(cell=cell, has=jax.random.bernoulli(which), opened=jnp.bool_(False))

  def best(task):
    # standing on a cell is not ending a step on it: that takes one step at least
    away = lambda a, b: jnp.maximum(jnp.sum(jnp.abs(a - b)), 1)
    key = away(task.key, jnp.asarray(origin, jnp.int32))
    door = key + away(task.key, task.door)
    return (key <= horizon).astype(jnp.float32) + (door <= horizon).astype(jnp.float32)

  act = lambda key: jax.random.randint(key, (), 0, ACTIONS)
  return Family(
    name="key_to_door",
    observation=3 if shown else 2,
    actions=ACTIONS,
    horizon=horizon,
    steps=steps,
    task=lambda key: draw(train, key),
    start=begin,
    step=step,
    observe=observe,
    label=lambda task, state: toward(state.cell, jnp.where(state.has, task.door, task.key)),
    mean=lambda task, state, action: step(task, state, action, None)[1],
    behave=lambda task, key, steps: independent(
      task, key, steps, query=query, act=act, step=step, observe=observe
    ),
    query=query,
    best=best,
    train=train,
    heldout=heldout,
    states=3 * n * n,
    index=lambda state: _index(state, n),
  )


def tasks(n: int, ids: np.ndarray) -> Task:
  """The tasks with these ids, stacked: id = ((key x, key y, door x, door y)) to the base n."""
  cells = np.stack(np.unravel_index(ids, (n,) * 4), axis=1).astype(np.int32)
  return Task(key=cells[:, :2], door=cells[:, 2:])  # pyright: ignore


def _index(state: State, n: int) -> Int[Array, ""]:
  stage = state.has.astype(jnp.int32) + state.opened.astype(jnp.int32)
  return (state.cell[0] * n + state.cell[1]) * 3 + stage
