"""The adapter against gymnax stepped by hand: resets, the two ends of an episode, parameters."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.envs import control
from grpo_jax.errors import UserError

gymnax = pytest.importorskip("gymnax")


def roll(env, steps, choose, key=0):
  """Steps of one copy, stacked, by a scan: states keep one type under our strict promotion."""

  def body(carry, drawn):
    state, observation = carry
    index, key = drawn
    now = env.step(state, choose(observation, index, key), key)
    return (now.state, now.observation), (observation, now)

  start = env.start(jax.random.key(key))
  keys = jax.random.split(jax.random.key(key + 1), steps)
  return jax.jit(lambda: jax.lax.scan(body, start, (jnp.arange(steps), keys))[1])()


def balance(observation, index, key):
  """Holds CartPole up: pushes towards where the pole falls."""
  del index, key
  return (observation[2] + 0.5 * observation[3] + 0.02 * observation[0] > 0).astype(jnp.int32)


def always(action):
  return lambda observation, index, key: action


def test_cartpole_is_gymnax_s_step_by_step():
  env = control.get("CartPole-v1")
  assert (env.observation, env.actions, env.continuous, env.horizon) == (4, 2, False, 500)
  seen, steps = roll(env, 30, always(jnp.int32(1)))
  theirs, params = gymnax.make("CartPole-v1")
  keys = jax.random.split(jax.random.key(1), 30)
  with jax.numpy_dtype_promotion("standard"):
    observation, state = theirs.reset(jax.random.key(0), params)
    ends = 0
    for t in range(30):
      np.testing.assert_allclose(seen[t], observation, rtol=1e-5, atol=1e-6)
      observation, state, reward, terminated, _, info = theirs.step(keys[t], state, 1, params)
      assert float(steps.reward[t]) == float(reward) == 1.0
      assert bool(steps.terminated[t]) == bool(terminated) and not steps.truncated[t]
      np.testing.assert_allclose(steps.final[t], info["final_observation"], rtol=1e-5, atol=1e-6)
      ends += int(terminated)
  assert ends >= 2


def test_a_new_episode_begins_where_one_ended_and_final_is_what_was_left():
  env = control.get("CartPole-v1")
  seen, steps = roll(env, 40, always(jnp.int32(0)))
  ended = np.asarray(steps.terminated)
  assert 2 <= ended.sum() < 40
  fresh, left = np.asarray(steps.observation)[ended], np.asarray(steps.final)[ended]
  assert np.all(np.abs(fresh) <= 0.05) and np.all(np.abs(left[:, 2]) > 12 * np.pi / 180)
  np.testing.assert_array_equal(steps.observation[~ended], steps.final[~ended])
  np.testing.assert_array_equal(steps.observation[:-1], seen[1:])


def test_the_time_limit_truncates_and_does_not_terminate():
  env = control.get("CartPole-v1", max_steps_in_episode=25)
  assert env.horizon == 25
  _, steps = roll(env, 60, balance)
  assert not np.any(steps.terminated)
  assert np.flatnonzero(steps.truncated).tolist() == [24, 49]


def test_a_step_that_falls_at_the_time_limit_is_terminated():
  _, steps = roll(control.get("CartPole-v1"), 15, always(jnp.int32(0)))
  first = int(np.flatnonzero(steps.terminated)[0])
  _, steps = roll(
    control.get("CartPole-v1", max_steps_in_episode=first + 1), 15, always(jnp.int32(0))
  )
  assert bool(steps.terminated[first]) and not bool(steps.truncated[first])


def test_a_continuous_action_is_clipped_to_the_action_space():
  env = control.get("Pendulum-v1")
  assert (env.observation, env.actions, env.continuous, env.horizon) == (3, 1, True, 200)
  _, at = roll(env, 5, always(jnp.array([2.0])))
  _, beyond = roll(env, 5, always(jnp.array([50.0])))
  _, less = roll(env, 5, always(jnp.array([1.0])))
  np.testing.assert_array_equal(at.final, beyond.final)
  assert not np.allclose(at.final, less.final)


# A step of every kind: dictionaries of states, images, bandits, continuous and integer rewards.
SOME = (
  "Acrobot-v1",
  "Breakout-MinAtar",
  "Catch-bsuite",
  "BernoulliBandit-misc",
  "PointRobot-misc",
  "SimpleBandit-bsuite",
)
REST = (
  "MountainCar-v0",
  "MountainCarContinuous-v0",
  "Asterix-MinAtar",
  "Freeway-MinAtar",
  "Seaquest-MinAtar",
  "SpaceInvaders-MinAtar",
  "DeepSea-bsuite",
  "MemoryChain-bsuite",
  "UmbrellaChain-bsuite",
  "DiscountingChain-bsuite",
  "FourRooms-misc",
  "MetaMaze-misc",
  "GaussianBandit-misc",
  "Reacher-misc",
  "Swimmer-misc",
  "Pong-misc",
  "FrozenLake-misc",
)


@pytest.mark.parametrize("name", [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in REST)])
def test_every_environment_goes_through_the_one_adapter(name):
  env = control.get(name)

  def choose(observation, index, key):
    if env.continuous:
      return jax.random.normal(key, (env.actions,))
    return jax.random.randint(key, (), 0, env.actions)

  seen, steps = roll(env, 12, choose)
  assert seen.shape == steps.final.shape == (12, env.observation)
  assert steps.reward.dtype == jnp.float32 and steps.reward.shape == (12,)
  assert np.all(np.isfinite(seen)) and np.all(np.isfinite(steps.reward))
  assert not np.any(steps.terminated & steps.truncated)
  if name == "SimpleBandit-bsuite":
    assert np.all(steps.terminated)


@pytest.mark.parametrize(
  ("name", "params", "message"),
  [
    ("CartPole-v2", {}, "env: unknown name 'CartPole-v2'; did you mean 'CartPole-v1'"),
    ("CartPole-v1", {"gravty": 1.0}, "env_args of CartPole-v1: unknown name 'gravty'.*'gravity'"),
  ],
)
def test_a_misspelt_name_or_parameter_is_one_line_with_the_nearest(name, params, message):
  with pytest.raises(UserError, match=message):
    control.get(name, **params)


def test_without_gymnax_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "gymnax", None)
  with pytest.raises(UserError, match=r"pip install 'grpo-jax\[envs\]'"):
    control.get("CartPole-v1")
