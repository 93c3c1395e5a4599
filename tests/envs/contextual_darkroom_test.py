"""Darkroom against a transcription in plain Python and value iteration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from grpo_jax.envs import contextual
from grpo_jax.envs.contextual import darkroom

MOVES = [(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)]


def land(cell, action, perm, n):
  x, y = MOVES[perm[action]]
  return min(max(cell[0] + x, 0), n - 1), min(max(cell[1] + y, 0), n - 1)


def values(goal, perm, n, horizon):
  """Q[h][x, y, a]: the best return of the last h steps, float64."""
  ahead, out = np.zeros((n, n)), []
  for _ in range(horizon):
    q = np.zeros((n, n, 5))
    for x, y, a in np.ndindex(q.shape):
      to = land((x, y), a, perm, n)
      q[x, y, a] = (to == goal) + ahead[to]
    ahead = q.max(axis=-1)
    out.append(q)
  return out


def everything(family, task, n):
  """(labels [n, n], next [n, n, 5, 2], reward [n, n, 5]) of all states."""
  cells = jnp.asarray(list(np.ndindex(n, n)), jnp.int32)
  labels = jax.vmap(lambda s: family.label(task, s))(cells)
  step = lambda s, a: family.step(task, s, a, jax.random.key(0))
  grid = jax.vmap(lambda s: jax.vmap(lambda a: step(s, a))(jnp.arange(5)))
  after, reward = grid(cells)
  return labels.reshape(n, n), after.reshape(n, n, 5, 2), reward.reshape(n, n, 5)


@pytest.mark.parametrize(
  ("permuted", "start"), [(False, "corner"), (False, "center"), (True, "corner")]
)
def test_labels_and_returns_are_optimal_in_every_state_at_every_time(permuted, start):
  n, horizon = 4, 9
  family = contextual.get("darkroom", n=n, horizon=horizon, permuted=permuted, start=start)
  origin = (0, 0) if start == "corner" else (2, 2)
  look = jax.jit(jax.vmap(lambda task: (*everything(family, task, n), family.best(task))))
  looked = [np.asarray(x) for x in look(family.heldout)]
  goals, perms = np.asarray(family.heldout.goal), np.asarray(family.heldout.perm)
  for goal, perm, labels, after, reward, best in zip(goals, perms, *looked, strict=True):
    q = values(tuple(goal), perm, n, horizon)
    for x, y in np.ndindex(n, n):
      for a in range(5):
        assert tuple(after[x, y, a]) == land((x, y), a, perm, n)
        assert reward[x, y, a] == (tuple(after[x, y, a]) == tuple(goal))
      for left in q:
        assert left[x, y, labels[x, y]] == left[x, y].max()
    assert best == q[-1][origin].max()


def test_best_is_exact_for_every_goal_and_every_short_horizon():
  n, last = 4, 8
  goals = list(np.ndindex(n, n))
  tasks = darkroom.tasks(n, False, np.arange(n * n))
  np.testing.assert_array_equal(tasks.goal, goals)
  q = [values(goal, range(5), n, last) for goal in goals]
  for horizon in range(1, last + 1):
    best = jax.jit(jax.vmap(contextual.get("darkroom", n=n, horizon=horizon).best))(tasks)
    np.testing.assert_array_equal(best, [left[horizon - 1][0, 0].max() for left in q])


def drawn(family, pick, count=6000):
  tasks = jax.jit(jax.vmap(family.task))(jax.random.split(jax.random.key(0), count))
  return {tuple(row) for row in np.asarray(pick(tasks)).tolist()}


def test_goals_are_split_80_to_20_as_dpt_does():
  family = contextual.get("darkroom")
  goals = np.array([[(j, i) for i in range(10)] for j in range(10)]).reshape(-1, 2)
  np.random.RandomState(seed=0).shuffle(goals)
  held = np.asarray(family.heldout.goal)
  np.testing.assert_array_equal(held, goals[80:])
  train = drawn(family, lambda t: t.goal)
  assert train == {tuple(g) for g in goals[:80].tolist()}
  assert not train & {tuple(g) for g in held.tolist()}


def test_permutations_are_bijections_and_split_80_to_20():
  family = contextual.get("darkroom", permuted=True)
  held = {tuple(p) for p in np.asarray(family.heldout.perm).tolist()}
  train = drawn(family, lambda t: t.perm)
  assert len(held) == 24 and len(train) == 96 and not held & train
  assert held | train == set(itertools.permutations(range(5)))
  np.testing.assert_array_equal(family.heldout.goal, 9)


def test_contexts_cover_states_and_actions_uniformly_and_pay_on_the_goal():
  family = contextual.get("darkroom", n=5)

  @jax.jit
  def make(key):
    task = jax.tree.map(lambda x: jnp.asarray(x[0]), family.heldout)
    query = lambda key: family.index(family.query(task, key))
    return family.behave(task, key, 20_000), jax.vmap(query)(jax.random.split(key, 20_000))

  made, queries = jax.tree.map(np.asarray, make(jax.random.key(0)))
  state, goal = made.state.astype(int), tuple(family.heldout.goal[0])
  joint = np.bincount((state[:, 0] * 5 + state[:, 1]) * 5 + made.action, minlength=125)
  assert stats.chisquare(joint).pvalue > 1e-3
  for s, a, t, r in zip(state[:500], made.action, made.next_state, made.reward, strict=False):
    assert tuple(t) == land(tuple(s), a, range(5), 5) and r == (tuple(t) == goal)
  assert stats.chisquare(np.bincount(queries, minlength=25)).pvalue > 1e-3


def test_every_state_has_its_own_index():
  family = contextual.get("darkroom", n=4)
  cells = jnp.asarray(list(np.ndindex(4, 4)), jnp.int32)
  assert sorted(np.asarray(jax.vmap(family.index)(cells))) == list(range(family.states))
