"""Point-Robot against float64 numpy and a search over action sequences."""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.envs import contextual
from grpo_jax.envs.contextual import point_robot


def labels_followed(goal, starts, horizon, reach=0.1):
  """Distances [horizon, ...] of the policy that goes as far as it may, float64."""
  at, out = starts.astype(np.float64), []
  for _ in range(horizon):
    at = at + np.clip(goal - at, -reach, reach)
    out.append(np.sqrt(((goal - at) ** 2).sum(axis=-1)))
  return np.stack(out)


def test_best_is_the_mean_return_over_a_fine_grid_of_starts():
  family = contextual.get("point_robot")
  line = np.linspace(-0.1, 0.1, 201)
  line = (line[1:] + line[:-1]) / 2
  starts = np.stack(np.meshgrid(line, line), axis=-1)
  goals = np.concatenate([family.heldout.goal, [[0, 0], [0.05, -0.02]]])
  best = jax.jit(jax.vmap(family.best))(point_robot.Task(goal=goals.astype(np.float32)))
  exact = [-labels_followed(goal, starts, 20).mean(axis=(1, 2)).sum() for goal in goals]
  np.testing.assert_allclose(best, exact, atol=2e-3)


def test_no_sequence_of_actions_is_ever_nearer_than_the_labels():
  family = contextual.get("point_robot")
  rng = np.random.default_rng(0)
  goals, starts = rng.uniform(-1, 1, (50, 1, 2)), rng.uniform(-0.1, 0.1, (50, 1, 2))
  task = jax.tree.map(lambda x: jnp.asarray(x[0]), family.heldout)

  def follow(goal, start):
    here = task.replace(goal=goal)

    def one(state, _):
      state, reward = family.step(here, state, family.label(here, state), None)
      return state, -reward

    return jax.lax.scan(one, start, None, length=20)[1]

  flat = lambda x: jnp.asarray(x[:, 0], jnp.float32)
  ours = np.asarray(jax.jit(jax.vmap(follow))(flat(goals), flat(starts)))
  np.testing.assert_allclose(ours, labels_followed(goals, starts, 20)[..., 0].T, atol=1e-5)
  drift = np.clip((goals - starts)[:, :, None] + rng.normal(0, 0.3, (50, 200, 20, 2)), -1, 1)
  walks = starts[:, :, None] + 0.1 * np.cumsum(drift, axis=2)
  distance = np.sqrt(((walks - goals[:, :, None]) ** 2).sum(axis=-1))
  assert np.all(distance.min(axis=1) >= ours - 1e-5)
  assert np.any(distance.min(axis=1) < ours + 0.05)  # the search comes near


def test_actions_are_held_in_the_unit_square():
  family = contextual.get("point_robot")
  task = jax.tree.map(lambda x: jnp.asarray(x[0]), family.heldout)
  after, reward = family.step(task, jnp.zeros(2), jnp.array([5.0, -0.5]), None)
  np.testing.assert_allclose(after, [0.1, -0.05], rtol=1e-6)
  gone = np.asarray(after, np.float64) - np.asarray(task.goal, np.float64)
  np.testing.assert_allclose(reward, -np.hypot(*gone), rtol=1e-6)


def test_goals_are_split_45_to_5_or_fresh():
  family = contextual.get("point_robot")
  tasks = jax.jit(jax.vmap(family.task))(jax.random.split(jax.random.key(0), 2000))
  train = {tuple(g) for g in np.asarray(tasks.goal).tolist()}
  held = {tuple(g) for g in np.asarray(family.heldout.goal).tolist()}
  assert len(train) == 45 and len(held) == 5 and not train & held
  fresh = contextual.get("point_robot", goals=0)
  tasks = jax.jit(jax.vmap(fresh.task))(jax.random.split(jax.random.key(0), 200))
  assert fresh.heldout is None and len({tuple(g) for g in np.asarray(tasks.goal).tolist()}) == 200


def test_contexts_follow_the_dynamics():
  family = contextual.get("point_robot")
  task = jax.tree.map(lambda x: jnp.asarray(x[0]), family.heldout)
  behave = jax.jit(lambda key: family.behave(task, key, 500))
  made = jax.tree.map(lambda x: np.asarray(x, np.float64), behave(jax.random.key(0)))
  assert 0.9 < abs(made.action).max() <= 1 and 0.9 < abs(made.state).max() <= 1
  np.testing.assert_allclose(made.next_state, made.state + 0.1 * made.action, atol=1e-6)
  gone = made.next_state - np.asarray(task.goal, np.float64)
  np.testing.assert_allclose(made.reward, -np.sqrt((gone**2).sum(axis=1)), atol=1e-6)
