"""Fetch a key and open a door on a grid; after each move the world writes where one is.

Tokens: the cells c0.. row by row, "north", "south", "west", "east", "nothing", "key", "locked",
"wall", "?", ">". The prompt is the cells of the agent, the key and the door (each different) and
">"; with hidden=True the last two are "?". A turn is one move; then the world writes the cell where
one stands and what is there: "key" when it is taken, "locked" at the door without the key, "wall"
after a move that leads nowhere (off the grid, or no move), else "nothing". Reaching the door with
the key, the last move or STOP ends the episode. Reward: 1 if the door was opened. `turn_reward`:
1/2 for the move that takes the key, 1/2 for the one that opens the door. Parts: `key`, `door`.

Chance: exact, from the chances of reaching a cell from any other in any number of moves. Best: 1;
enough moves are demanded: 4 (size-1) if shown; if hidden, so many that one can walk to a corner,
through all cells and back to the door, size^2 - 1 + 3 (size-1). The solution knows the cells, so
where they are hidden it is a demonstration that the policy cannot follow by itself. For papers 03,
29, 53, 77.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from grpo_jax.envs import world
from grpo_jax.types import Record, record

_FIRST = 2
_SYMBOLS = ("north", "south", "west", "east", "nothing", "key", "locked", "wall", "?", ">")
_WAYS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # row, column
_NOTHING, _KEY, _LOCKED, _WALL, _UNKNOWN, _END = range(4, 10)  # places in _SYMBOLS


@record
class _State(Record):
  cell: Array
  has: Array  # the key
  turn: Array  # moves made
  tell: Array  # tokens that the world has still to write
  here: Array  # the second of them
  done: Array
  reward: Array  # f32[moves]


def _land(cell, way, size: int):
  """(the cell after a move, whether it led anywhere)."""
  ways = jnp.asarray(_WAYS, jnp.int32)[jnp.clip(way, 0, 3)]
  row, column = cell // size + ways[0], cell % size + ways[1]
  inside = (way >= 0) & (way < 4) & (row >= 0) & (row < size) & (column >= 0) & (column < size)
  return jnp.where(inside, row * size + column, cell), inside


def make(*, size: int = 3, moves: int | None = None, hidden: bool = False) -> world.World:
  """A grid of size x size cells; `moves` (if not given: as many as may be needed)."""
  world.check("key_door.size", size, 2, 7)
  needed = size**2 - 1 + 3 * (size - 1) if hidden else 4 * (size - 1)
  moves = needed if moves is None else moves
  world.check("key_door.moves", moves, needed, 256)
  base = _FIRST + size**2

  def problem(key):
    (order,) = world.draw(key, (size**2, world.MANY))
    cells = jnp.argsort(order)[:3].astype(jnp.int32)
    shown = cells + _FIRST
    if hidden:
      shown = shown.at[1:].set(base + _UNKNOWN)
    tokens = jnp.append(shown, jnp.int32(base + _END))
    return world.Problem(tokens=tokens, length=jnp.int32(4), data=cells)

  def step(problem, state, token):
    return _step(problem.data, state, token, size, base)

  def score(problem, state, tokens, length):
    del problem, tokens, length
    opened = jnp.sum(state.reward) == 1.0
    parts = world.floats(state.has, opened)
    return world.Verdict(reward=parts[1], correct=opened, parts=parts, turn_reward=state.reward)

  start = lambda problem: _start(problem, moves)
  choose = lambda problem, state: _shortest(problem.data, state, size) + base
  symbols = ("_", ".", *(f"c{i}" for i in range(size**2)), *_SYMBOLS)
  return world.World(
    name="key_door",
    symbols=symbols,
    prompt=4,
    answer=3 * moves - 2,
    problem=problem,
    score=score,
    solution=lambda problem: world.follow(start, step, choose, problem, 3 * moves - 2),
    chance=_chance(size, moves, len(symbols)),
    turns=moves,
    parts=("key", "door"),
    start=start,
    step=step,
  )


def _start(problem, moves: int):
  zero, no = jnp.int32(0), jnp.bool_(False)
  state = _State(
    cell=problem.data[0], has=no, turn=zero, tell=zero, here=zero, done=no, reward=jnp.zeros(moves)
  )
  return state, world.Next(force=jnp.int32(-1), done=no, turn=zero)


def _step(cells, state: _State, token, size: int, base: int):
  moves = state.reward.shape[0]
  acts = (state.tell == 0) & ~state.done
  land, inside = _land(state.cell, token - base, size)
  cell = jnp.where(acts, land, state.cell)
  took = acts & inside & ~state.has & (cell == cells[1])
  opened = acts & inside & state.has & (cell == cells[2])
  here = jnp.where(took, _KEY, jnp.where(cell == cells[2], _LOCKED, _NOTHING))
  here = jnp.where(acts, jnp.where(inside, here, _WALL) + base, state.here)
  turn = state.turn + acts.astype(jnp.int32)
  done = state.done | opened | (acts & ((token == world.STOP) | (turn == moves)))
  tell = jnp.where(acts, jnp.where(done, 0, 2), jnp.maximum(state.tell - 1, 0))
  earned = (took | opened).astype(jnp.float32) / 2
  reward = jnp.where(acts, state.reward.at[state.turn].set(earned), state.reward)
  force = jnp.where(tell == 2, cell + _FIRST, jnp.where(tell == 1, here, -1))
  state = _State(
    cell=cell, has=state.has | took, turn=turn, tell=tell, here=here, done=done, reward=reward
  )
  return state, world.Next(force=force, done=done, turn=jnp.minimum(turn, moves - 1))


def _shortest(cells, state: _State, size: int):
  goal = jnp.where(state.has, cells[2], cells[1])
  down, right = goal // size - state.cell // size, goal % size - state.cell % size
  vertical = jnp.where(down < 0, 0, 1)
  return jnp.where(down != 0, vertical, jnp.where(right < 0, 2, 3))


def _chance(size: int, moves: int, v: int) -> float:
  """From first[t][c, k], the chance to stand on k for the first time t + 1 moves after c."""
  n = size**2
  step, others = np.zeros((n, n)), 1 - np.eye(n)
  for cell in range(n):
    for way in _WAYS:
      step[cell, _lands(cell, way, size)] += 1 / v
  goes_on = step + (v - 5) / v * np.eye(n)  # what is neither a move nor STOP leaves one there
  first = [step * others]
  for _ in range(moves - 1):
    first.append((goes_on @ first[-1]) * others)
  paths = sum(first[t] @ first[u] for t in range(moves) for u in range(moves - 1 - t))
  return float(np.sum(paths * others)) / (n * (n - 1) * (n - 2))


def _lands(cell: int, way: tuple[int, int], size: int) -> int:
  row, column = cell // size + way[0], cell % size + way[1]
  return row * size + column if 0 <= row < size and 0 <= column < size else cell
