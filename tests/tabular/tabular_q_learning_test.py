"""Q-learning against value iteration, and the histories that it leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.tabular import q_learning

MOVES = [(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)]


def optimal(goal, n, gamma):
  """Q*[x * n + y, a] of the Darkroom without an end, by value iteration in float64."""
  q = np.zeros((n, n, 5))
  for _ in range(400):
    ahead, after = q.max(axis=-1), np.zeros_like(q)
    for x, y, a in np.ndindex(q.shape):
      to = min(max(x + MOVES[a][0], 0), n - 1), min(max(y + MOVES[a][1], 0), n - 1)
      after[x, y, a] = (to == goal) + gamma * ahead[to]
    q = after
  return q.reshape(n * n, 5)


def task_of(family, goal):
  return family.task(jax.random.key(0)).replace(goal=jnp.asarray(goal, jnp.int32))


@pytest.mark.parametrize("goal", [(2, 1), (0, 0)])
def test_a_random_learner_with_rate_1_finds_the_optimal_values(goal):
  family = contextual.get("darkroom", n=3, horizon=30)
  learn = lambda task, key: q_learning.learn(
    family, task, key, episodes=150, rate=1.0, gamma=0.8, epsilon=(1.0, 1.0)
  )
  history = jax.jit(learn)(task_of(family, goal), jax.random.key(0))
  np.testing.assert_allclose(history.q, optimal(goal, 3, 0.8), atol=1e-4)


def test_histories_are_episodes_one_after_the_other():
  family = contextual.get("darkroom", n=4, horizon=10)
  task = task_of(family, (2, 3))
  history = q_learning.learn(family, task, jax.random.key(0), episodes=7)
  steps = jax.tree.map(np.asarray, history.steps)
  assert steps.state.shape == (70, 2) and steps.action.shape == steps.reward.shape == (70,)
  starts = np.arange(70) % 10 == 0
  np.testing.assert_array_equal(steps.state[starts], 0)
  np.testing.assert_array_equal(steps.state[1:][~starts[1:]], steps.next_state[:-1][~starts[1:]])
  for s, a, t, r in zip(steps.state, steps.action, steps.next_state, steps.reward, strict=True):
    np.testing.assert_array_equal(t, np.clip(s + MOVES[a], 0, 3))
    assert r == (tuple(t) == (2, 3))
  np.testing.assert_allclose(history.returns, steps.reward.reshape(7, 10).sum(axis=1))


def test_the_table_is_what_the_history_taught():
  family = contextual.get("darkroom", n=3, horizon=12)
  rate, gamma, initial = 0.3, 0.9, 0.25
  history = q_learning.learn(
    family,
    task_of(family, (1, 1)),
    jax.random.key(1),
    episodes=9,
    rate=rate,
    gamma=gamma,
    initial=initial,
  )
  q = np.full((9, 5), initial)
  steps = jax.tree.map(np.asarray, history.steps)
  for s, a, t, r in zip(steps.state, steps.action, steps.next_state, steps.reward, strict=True):
    i, j = int(s[0] * 3 + s[1]), int(t[0] * 3 + t[1])
    q[i, a] += rate * (r + gamma * q[j].max() - q[i, a])
  np.testing.assert_allclose(history.q, q, atol=1e-5)


@pytest.mark.parametrize(
  ("name", "sizes", "episodes", "share"),
  [
    ("darkroom", {"n": 5, "horizon": 20}, 300, 0.85),
    ("darkroom", {"n": 5, "horizon": 20, "permuted": True}, 300, 0.85),
    ("key_to_door", {"n": 4, "horizon": 30}, 600, 0.85),
  ],
)
def test_the_learner_improves_until_it_is_nearly_optimal(name, sizes, episodes, share):
  family = contextual.get(name, **sizes)
  keys = jax.random.split(jax.random.key(0), 20)

  def one(key):
    made, go = jax.random.split(key)
    task = family.task(made)
    return q_learning.learn(family, task, go, episodes=episodes).returns / family.best(task)

  curve = np.asarray(jax.jit(jax.vmap(one))(keys)).mean(axis=0)
  assert curve[-20:].mean() > share and curve[:20].mean() < 0.6 * curve[-20:].mean()
  assert curve.max() <= 1 + 1e-6


def test_epsilon_greedy_has_its_probabilities():
  q = jnp.array([1.0, 2.0, 2.0, 0.0])
  keys = jax.random.split(jax.random.key(0), 40_000)
  pick = jax.vmap(lambda key: q_learning.epsilon_greedy(q, jnp.float32(0.2), key))
  share = np.bincount(np.asarray(pick(keys)), minlength=4) / 40_000
  np.testing.assert_allclose(share, [0.05, 0.45, 0.45, 0.05], atol=0.012)


def test_families_without_a_table_are_refused():
  for name in ("point_robot",):
    family = contextual.get(name)
    with pytest.raises(UserError, match=name):
      q_learning.learn(family, family.task(jax.random.key(0)), jax.random.key(0), episodes=2)
  family = contextual.get("darkroom")
  with pytest.raises(UserError, match="episodes"):
    q_learning.learn(family, family.task(jax.random.key(0)), jax.random.key(0), episodes=0)
