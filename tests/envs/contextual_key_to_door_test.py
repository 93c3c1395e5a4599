"""Key-to-Door against a transcription in plain Python and value iteration."""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.envs import contextual
from grpo_jax.envs.contextual import key_to_door
from grpo_jax.envs.contextual.key_to_door import State

MOVES = [(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)]
N, HORIZON = 3, 7
STATES = [(x, y, stage) for x in range(N) for y in range(N) for stage in range(3)]


def land(state, action, key, door):
  """(next state, reward); stage 0 without the key, 1 with it, 2 the door is open."""
  x, y, stage = state
  x = min(max(x + MOVES[action][0], 0), N - 1)
  y = min(max(y + MOVES[action][1], 0), N - 1)
  pays = (stage == 0 and (x, y) == key) or (stage == 1 and (x, y) == door)
  return (x, y, stage + pays), float(pays)


def values(key, door):
  ahead, out = dict.fromkeys(STATES, 0.0), []
  moved = {(s, a): land(s, a, key, door) for s in STATES for a in range(5)}
  for _ in range(HORIZON):
    q = {s: [moved[s, a][1] + ahead[moved[s, a][0]] for a in range(5)] for s in STATES}
    ahead = {s: max(q[s]) for s in STATES}
    out.append(q)
  return moved, out


def stacked():
  cells = np.asarray([s[:2] for s in STATES], np.int32)
  stage = np.asarray([s[2] for s in STATES])
  return State(cell=jnp.asarray(cells), has=jnp.asarray(stage > 0), opened=jnp.asarray(stage > 1))


def test_labels_and_returns_are_optimal_in_every_state_at_every_time_of_every_task():
  family = contextual.get("key_to_door", n=N, horizon=HORIZON)
  states = stacked()

  @jax.jit
  @jax.vmap
  def everything(task):
    labels = jax.vmap(lambda s: family.label(task, s))(states)
    step = lambda s, a: family.step(task, s, a, jax.random.key(0))
    after, reward = jax.vmap(lambda s: jax.vmap(lambda a: step(s, a))(jnp.arange(5)))(states)
    index = jax.vmap(jax.vmap(family.index))(after)
    return labels, index, reward, family.best(task)

  looked = (np.asarray(x) for x in everything(key_to_door.tasks(N, np.arange(N**4))))
  for cells, labels, index, reward, best in zip(np.ndindex(N, N, N, N), *looked, strict=True):
    moved, q = values(cells[:2], cells[2:])
    for i, s in enumerate(STATES):
      for a in range(5):
        to, pays = moved[s, a]
        assert index[i, a] == STATES.index(to) and reward[i, a] == pays
      for left in q:
        assert left[s][labels[i]] == max(left[s])
    assert best == max(q[-1][1, 1, 0])


def test_best_counts_only_what_the_horizon_allows():
  held = contextual.get("key_to_door", n=N).heldout
  q = [values(tuple(a), tuple(b))[1] for a, b in zip(held.key, held.door, strict=True)]
  for horizon in range(1, HORIZON):
    best = jax.jit(jax.vmap(contextual.get("key_to_door", n=N, horizon=horizon).best))(held)
    np.testing.assert_array_equal(best, [max(left[horizon - 1][1, 1, 0]) for left in q])


def test_tasks_are_split_80_to_20_over_all_pairs_of_cells():
  family = contextual.get("key_to_door", n=N)
  held = np.concatenate([family.heldout.key, family.heldout.door], axis=1)
  tasks = jax.jit(jax.vmap(family.task))(jax.random.split(jax.random.key(0), 4000))
  train = np.concatenate([tasks.key, tasks.door], axis=1)
  held, train = ({tuple(row) for row in x.tolist()} for x in (held, train))
  assert len(train) == 64 and len(held) == 17 and not held & train
  assert held | train == set(np.ndindex(N, N, N, N))
  assert len(contextual.get("key_to_door").heldout.key) == 9**4 - int(0.8 * 9**4)


def test_whether_one_has_the_key_is_seen_only_if_shown():
  states = stacked()
  shown = jax.vmap(contextual.get("key_to_door", n=N).observe)(states)
  hidden = jax.vmap(contextual.get("key_to_door", n=N, shown=False).observe)(states)
  np.testing.assert_array_equal(shown, [[x, y, stage > 0] for x, y, stage in STATES])
  np.testing.assert_array_equal(hidden, [[x, y] for x, y, _ in STATES])


def test_every_state_has_its_own_index():
  family = contextual.get("key_to_door", n=N)
  assert list(np.asarray(jax.vmap(family.index)(stacked()))) == list(range(family.states))


def test_contexts_are_single_steps_from_before_and_after_the_key():
  family = contextual.get("key_to_door", n=N)
  task = jax.tree.map(lambda x: jnp.asarray(x[3]), family.heldout)
  behave = jax.jit(lambda key: family.behave(task, key, 2000))
  made = jax.tree.map(np.asarray, behave(jax.random.key(0)))
  key, door = tuple(np.asarray(task.key)), tuple(np.asarray(task.door))
  for s, a, t, r in zip(made.state, made.action, made.next_state, made.reward, strict=True):
    (x, y, stage), pays = land((int(s[0]), int(s[1]), int(s[2])), a, key, door)
    assert (x, y, stage > 0) == (t[0], t[1], t[2] > 0) and r == pays
  assert 0.4 < made.state[:, 2].mean() < 0.6 and set(made.reward.tolist()) == {0.0, 1.0}
