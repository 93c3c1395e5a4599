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
POINT = contextual.get("point_robot", horizon=2, steps=4, start=0.0)
MOVES = np.asarray([(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)])
MOE = MoEConfig(experts=2, task_experts=3, top_k=1, hidden=8)
HARD = MoEConfig(experts=0, task_experts=3, top_k=1, hidden=8, hard=True)


def whole(layout, config, params, history):
  """The output at the last state of [(s, a, r), ..., s], read at once."""
  rows = []
  for *step, _ in history:
    for part in step:
      rows.append(np.pad(np.asarray(part, np.float32).ravel(), (0, layout.width))[: layout.width])
  x = np.stack(rows)[None, : 3 * (len(history) - 1) + 1]
  position = jnp.arange(x.shape[1], dtype=jnp.int32) // 3
  out = model.apply(config, params, jnp.asarray(x), position=position).outputs
  return np.asarray(out[0, -1])


def by_hand(layout, config, params, goal, episodes):
  """Rewards [E, T] of one Darkroom task, always the likeliest action."""
  read = functools.partial(whole, layout, config, params)
  history, rewards = [], []
  for _ in range(episodes):
    history = history[-(layout.steps - ROOM.horizon) :]
    cell = np.asarray((0, 0))
    for _ in range(ROOM.horizon):
      action = int(np.argmax(read([*history, (cell, np.zeros(5), 0.0, None)])))
      after = np.clip(cell + MOVES[action], 0, 2)
      rewards.append(float((after == goal).all()))
      history.append((cell, np.eye(5)[action], rewards[-1], None))
      cell = after
  return np.asarray(rewards).reshape(episodes, -1)


@pytest.mark.parametrize("moe", [None, MOE, HARD], ids=["dense", "moe", "hard"])
def test_episodes_equal_those_of_a_reader_without_a_cache(moe):
  layout = Layout(ROOM, 6, "history")
  config = make_config(layout, hidden=8, layers=2, heads=2, moe=moe)
  play = jax.jit(
    functools.partial(in_context_history.play, layout, config, episodes=5, greedy=True)
  )
  differ = False
  for seed in range(3):
    params = jax.tree.map(lambda x: 6 * x, model.init(config, jax.random.key(seed)))
    out = play(params, ROOM.heldout, jax.random.key(1))
    assert out.reward.shape == out.right.shape == (2, 5, 2)
    want = [by_hand(layout, config, params, g, 5) for g in np.asarray(ROOM.heldout.goal)]
    np.testing.assert_array_equal(out.reward, want)
    differ = differ or bool(np.ptp(np.asarray(want), axis=1).any())
  assert differ or moe is not None  # some model acts otherwise for what it has seen


def test_actions_are_drawn_from_the_model_and_continuous_ones_are_its_tanh():
  layout = Layout(POINT, 4, "history")
  config = make_config(layout, hidden=8, layers=1)
  params = model.init(config, jax.random.key(0))
  out = in_context_history.play(layout, config, params, POINT.heldout, jax.random.key(1), 2)
  goal = np.asarray(POINT.heldout.goal)[0]
  action = np.tanh(whole(layout, config, params, [(np.zeros(2), np.zeros(2), 0.0, None)]))
  want = -np.linalg.norm(0.1 * action - goal)
  assert float(out.reward[0, 0, 0]) == pytest.approx(want, rel=1e-5)
  room = Layout(ROOM, 6, "history")
  config = make_config(room, hidden=8, layers=1)
  params = model.init(config, jax.random.key(0))
  play = jax.jit(functools.partial(in_context_history.play, room, config, episodes=6))
  one, same, other = (
    np.asarray(play(params, ROOM.heldout, jax.random.key(k)).right) for k in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, same)
  assert (one != other).any()


def test_a_window_that_holds_no_two_episodes_is_refused():
  for steps in (2, 5):
    with pytest.raises(UserError, match=f"data.steps={steps}: must be a multiple of the horizon"):
      in_context_history.check(Layout(ROOM, steps, "history"))
  with pytest.raises(UserError, match="only tokens='history'"):
    in_context_history.check(Layout(ROOM, 6, "split"))
