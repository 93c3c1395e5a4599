"""Playing with one's own history as the context equals reading the whole history at every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.models import in_context as model
from grpo_jax.models.moe import MoEConfig
from grpo_jax.rollout import in_context_history
from grpo_jax.rollout.transition_tokens import Layout
from grpo_jax.train.in_context import make_config

ROOM = contextual.get("darkroom", n=3, horizon=2, steps=6)
POINT = contextual.get("point_robot", goals=10, horizon=2, steps=4, start=0.0, reach=0.5)
HARD = MoEConfig(experts=2, task_experts=3, top_k=1, hidden=8, hard=True)


def reader(config, params):
  """The output at the last state of [(s, a, r), ..., (s,)], all of it read at once."""
  apply = jax.jit(lambda x, position: model.apply(config, params, x, position=position).outputs)

  def read(history):
    parts = [np.ravel(part) for step in history for part in step]
    x = np.stack([np.pad(part, (0, 2 - len(part))) for part in parts]).astype(np.float32)
    return np.asarray(apply(jnp.asarray(x[None]), jnp.arange(len(x)) // 3)[0, -1], np.float64)

  return read


def by_hand(read, goal, episodes):
  """Rewards [E, T] on Point-Robot from the middle, whose actions are tanh of the output."""
  history, rewards = [], []
  for _ in range(episodes):
    history, place = history[-2:], np.zeros(2)  # a window of four steps, two of them to come
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
  with pytest.raises(UserError, match="only tokens='history'"):
    in_context_history.check(Layout(ROOM, 6, "split"))
