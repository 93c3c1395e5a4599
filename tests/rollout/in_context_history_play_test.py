"""Playing with one's own history as the context equals reading the whole history at every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.models.in_context import transformer as model
from grpo_jax.models.moe.layer import MoEConfig
from grpo_jax.rollout.in_context import history as in_context_history
from grpo_jax.rollout.in_context.tokens import Layout, empty
from grpo_jax.train.programs.in_context import make_config

ROOM = contextual.get("darkroom", n=3, horizon=2, steps=6)
POINT = contextual.get("point_robot", goals=10, horizon=2, steps=4, start=0.0, reach=0.5)
HARD = MoEConfig(experts=2, task_experts=3, top_k=1, hidden=8, hard=True)


def reader(config, params, horizon=1000, norm=None):
  """The output at the last state of [(s, a, r), ..., (s,)], all of it read at once."""
  apply = jax.jit(lambda x, position: model.apply(config, params, x, position=position).outputs)

  def read(history):
    if norm is not None:
      history = [((step[0] - norm[0]) / norm[1], *step[1:]) for step in history]
    parts = [np.ravel(part) for step in history for part in step]
    x = np.stack([np.pad(part, (0, 2 - len(part))) for part in parts]).astype(np.float32)
    return np.asarray(
      apply(jnp.asarray(x[None]), jnp.arange(len(x)) // 3 % horizon)[0, -1], np.float64
    )

  return read


def by_hand(read, goal, episodes, ascending=False):
  """Rewards [E, T] on Point-Robot from the middle, whose actions are tanh of the output."""
  history, rewards = [], []
  room = 4 if ascending else 2  # the window has two steps more, those of the episode to come
  for _ in range(episodes):
    history, place = history[-room:], np.zeros(2)
    if ascending:
      whole = [history[i : i + 2] for i in range(0, len(history), 2)]
      whole.sort(key=lambda steps: sum(r for _, _, r in steps))
      history = [step for steps in whole for step in steps]
    for _ in range(2):
      action = np.tanh(read([*history, (place,)]))
      after = place + 0.5 * action
      rewards.append(-np.linalg.norm(after - goal))
      history.append((place, action, rewards[-1]))
      place = after
  return np.asarray(rewards).reshape(episodes, -1)


@pytest.mark.parametrize(("moe", "layers"), [(None, 2), (HARD, 1)])
def test_episodes_equal_those_of_a_reader_without_a_cache(moe, layers):
  layout = Layout(POINT, 4, "history")
  config = make_config(layout, hidden=8, layers=layers, heads=2, moe=moe)
  params = model.init(config, jax.random.key(0))
  params = jax.tree.map(lambda x: 8 * x, params) | {"head": params["head"]}
  play = jax.jit(functools.partial(in_context_history.play, layout, config, episodes=4))
  out = play(params, POINT.heldout, jax.random.key(1))
  read = reader(config, params)
  want = np.stack([by_hand(read, goal, 4) for goal in np.asarray(POINT.heldout.goal)])
  np.testing.assert_allclose(out.reward, want, atol=1e-4)
  assert np.ptp(want, axis=1).max() > 1e-2  # it acts otherwise for what it has seen


def test_whole_episodes_are_read_in_ascending_order_of_return_by_standardized_states():
  norm = np.asarray([0.1, -0.2], np.float32), np.asarray([0.5, 2.0], np.float32)
  layout = Layout(POINT, 6, "episodes", norm)
  config = make_config(layout, hidden=8, layers=2, heads=2)
  assert config.positions == 2 and layout.position.tolist() == [0, 0, 0, 1, 1, 1] * 3
  params = model.init(config, jax.random.key(0))
  params = jax.tree.map(lambda x: 8 * x, params) | {"head": params["head"]}
  play = jax.jit(functools.partial(in_context_history.play, layout, config, episodes=6))
  out = np.asarray(play(params, POINT.heldout, jax.random.key(1)).reward)
  read = reader(config, params, 2, norm)
  goals = np.asarray(POINT.heldout.goal)
  want = np.stack([by_hand(read, goal, 6, ascending=True) for goal in goals])
  np.testing.assert_allclose(out, want, atol=1e-4)
  returns = want.sum(axis=2)
  assert (np.diff(returns, axis=1) < 0).any()  # some episode was worse than the one before


def test_the_norm_is_that_of_the_states_and_ends_up_in_the_tokens():
  states = np.random.default_rng(0).normal(size=(3, 4, 5, 2)) * [2, 0] + [1, 7]
  layout = Layout(POINT, 4, "episodes").normed(states)
  data = jax.tree.map(jnp.asarray, empty(POINT, 60)).replace(
    state=jnp.asarray(states.reshape(60, 2), jnp.float32)
  )
  seen = np.asarray(layout.tokens(data))[::3]
  np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-4)
  np.testing.assert_allclose(seen.std(axis=0), [1, 0], atol=1e-4)  # a constant stays finite


def test_discrete_actions_are_drawn_and_the_likeliest_is_taken_where_greedy():
  layout = Layout(ROOM, 6, "history")
  config = make_config(layout, hidden=8, layers=1)
  params = model.init(config, jax.random.key(0))
  sure = params | {"head": {"w": 0 * params["head"]["w"], "b": jnp.asarray([0.0, 0, 3, 0, 0])}}
  play = jax.jit(
    functools.partial(in_context_history.play, layout, config, episodes=6),
    static_argnames="greedy",
  )
  goal = np.asarray(ROOM.heldout.goal)
  right = np.asarray(play(sure, ROOM.heldout, jax.random.key(0), greedy=True).right)
  for task, (x, y) in enumerate(goal):  # up, up: right as long as the goal is above
    assert (right[task] == [x == 0 and y > 0, x == 0 and y > 1]).all()
  drawn = [np.asarray(play(params, ROOM.heldout, jax.random.key(k)).reward) for k in (0, 0, 1)]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert (drawn[0] != drawn[2]).any()


def test_a_window_that_holds_no_two_episodes_is_refused():
  for steps in (2, 5):
    with pytest.raises(UserError, match=f"data.steps={steps}: must be a multiple of the horizon"):
      in_context_history.check(Layout(ROOM, steps, "history"))
  with pytest.raises(UserError, match="only history and episodes"):
    in_context_history.check(Layout(ROOM, 6, "split"))
