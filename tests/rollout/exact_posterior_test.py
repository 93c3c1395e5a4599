"""Exact posterior sampling on small grids, against plain Python on every goal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.transitions import Transitions
from grpo_jax.envs import contextual
from grpo_jax.rollout.in_context import exact_posterior

MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))
ROOM = contextual.get("darkroom", n=3, horizon=4, steps=4)
GOALS = [(x, y) for x in range(3) for y in range(3)]
KNOWN = jax.tree.map(lambda *x: jnp.concatenate(x), ROOM.train, ROOM.heldout)


def walk(goal, start, actions):
  """A context as Python makes it: [(cell, action, cell after, reward)]."""
  steps, cell = [], start
  for a in actions:
    after = tuple(min(max(c + d, 0), 2) for c, d in zip(cell, MOVES[a], strict=True))
    steps.append((cell, a, after, float(after == goal)))
    cell = after
  return steps


def stacked(contexts):
  pick = lambda i, dtype: jnp.asarray([[step[i] for step in c] for c in contexts], dtype)
  return Transitions(
    state=pick(0, jnp.float32),
    action=pick(1, jnp.int32),
    next_state=pick(2, jnp.float32),
    reward=pick(3, jnp.float32),
  )


def remaining(steps):
  """Goals that all rewards agree with; all of them if none does."""
  fits = [g for g in GOALS if all((after == g) == (r == 1) for _, _, after, r in steps)]
  return fits or GOALS


def wanted(cell, goal):
  x, y = goal[0] - cell[0], goal[1] - cell[1]
  return 0 if x > 0 else 1 if x < 0 else 2 if y > 0 else 3 if y < 0 else 4


def contexts():
  rng = np.random.default_rng(0)
  some = [walk(GOALS[g], GOALS[s], rng.integers(0, 5, 6)) for g, s in rng.integers(0, 9, (40, 2))]
  impossible = walk((2, 2), (2, 1), [2, 4, 4, 4, 4, 4])
  impossible[1] = (*impossible[1][:3], 0.0)  # a goal that does not pay again
  return [*some, impossible]


def test_the_tasks_that_remain_are_those_of_python():
  made = contexts()
  keep = np.asarray(jax.jit(lambda d: exact_posterior.consistent(ROOM, KNOWN, d))(stacked(made)))
  names = [tuple(int(v) for v in g) for g in np.asarray(KNOWN.goal)]
  for row, steps in zip(keep[:-1], made[:-1], strict=True):
    assert {g for g, k in zip(names, row, strict=True) if k} == set(remaining(steps))
  assert not keep[-1].any()


def test_actions_are_those_of_tasks_drawn_from_the_posterior():
  made, draws = contexts(), 4000
  cells = [GOALS[i % 9] for i in range(len(made))]
  seen = jnp.asarray(cells, jnp.float32)

  def many(data):
    act = exact_posterior.actor(ROOM, KNOWN, data)
    return jax.lax.map(lambda key: act(seen, key), jax.random.split(jax.random.key(0), draws))

  action = np.asarray(jax.jit(many)(stacked(made)))
  share = np.stack([(action == a).mean(axis=0) for a in range(5)], axis=1)
  for cell, steps, found in zip(cells, made, share, strict=True):
    labels = [wanted(cell, g) for g in remaining(steps)]
    exact = np.bincount(labels, minlength=5) / len(labels)
    np.testing.assert_allclose(found, exact, atol=4.5 * np.sqrt(0.25 / draws))
    assert np.all(found[exact == 0] == 0)


@pytest.mark.parametrize("room", [4, 8])
def test_once_the_goal_is_in_the_context_an_episode_is_optimal(room):
  goals = jax.tree.map(lambda x: jnp.repeat(x, 50, axis=0), KNOWN)
  play = jax.jit(lambda key: exact_posterior.play(ROOM, goals, key, 6, room))
  returns = np.asarray(jnp.sum(play(jax.random.key(0)).reward, axis=2))
  best = np.asarray(jax.vmap(ROOM.best)(goals))
  found, after = returns[:, :-1] > 0, returns[:, 1:]
  assert found.any() and not found[:, 0].all()
  np.testing.assert_array_equal(after[found], np.broadcast_to(best[:, None], found.shape)[found])
