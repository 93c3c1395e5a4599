"""Environments of gymnax (control, MinAtar, bsuite, bandits) behind one record of pure functions.

  env = get("CartPole-v1")             a registered name of gymnax, the extra `envs`
  state, observation = env.start(key)
  now = env.step(state, action, key)   an episode that ends is followed by a fresh one

An episode ends by termination (the task is over: what follows is worth 0) or by truncation (the
time limit cut it: what follows has a value, that of `Step.final`). gymnax 1.0 reports the two
apart and every time limit as truncation; a step that is both counts as terminated. bsuite's bandits
terminate at every step, those of `misc` at their time limit only.
"""

import contextlib
import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.errors import UserError
from grpo_jax.names import check_keys, one_of
from grpo_jax.types import Record, record


@record
class Step(Record):
  """What one action led to, in one environment."""

  state: Any  # to go on from: of a new episode where one has ended
  observation: Float[Array, " O"]  # of that state
  reward: Float[Array, ""]
  terminated: Bool[Array, ""]
  truncated: Bool[Array, ""]  # by the time limit, and not terminated
  final: Float[Array, " O"]  # what the action led to, also where a new episode began


@dataclasses.dataclass(frozen=True)
class Control:
  """One environment: pure functions of one copy (vmap makes many) and static sizes."""

  name: str
  observation: int  # O: numbers an observation, flattened
  actions: int  # how many discrete actions, or dimensions of a continuous one
  continuous: bool
  horizon: int  # steps after which an episode is truncated
  start: Callable[[Array], tuple[Any, Array]]  # key -> (state, observation f32[O])
  # (state, action i32[] or f32[A], key, fresh=None) -> Step; `fresh`, a start, is what follows an
  # end, None draws one from the key. A scan is faster with starts that were drawn before it.
  step: Callable[..., Step]


def get(name: str, **params) -> Control:
  """The environment `name`; `params` are fields of gymnax's EnvParams or of its constructor.

  A continuous action outside the action space is clipped to it. Raises UserError where gymnax is
  missing, and for a name or parameter that it does not know.
  """
  gymnax = _gymnax()
  registered = gymnax.registration._registry
  one_of("env", name, registered)
  made = inspect.signature(registered[name]).parameters
  with _standard():
    try:
      env, env_params = gymnax.make(name, **{k: v for k, v in params.items() if k in made})
    except (AssertionError, OSError, TypeError, ValueError) as error:
      raise UserError(f"env={name}: gymnax cannot make it ({error})") from error
  fields = [f.name for f in dataclasses.fields(env_params)]
  check_keys(f"env_args of {name}", params, [*made, *fields])
  env_params = env_params.replace(**{k: v for k, v in params.items() if k in fields})
  return _adapt(name, env, env_params)


def _adapt(name: str, env, env_params) -> Control:
  with _standard():
    space = env.action_space(env_params)
  continuous = not hasattr(space, "n")
  shape = tuple(space.shape)

  def act(action):
    if not continuous:
      return action
    return jnp.clip(action.reshape(shape), space.low, space.high)

  def move(state, action, key):
    with _standard():
      observation, state, reward, terminated, _ = env.step_env(key, state, act(action), env_params)
      return observation, state, reward, terminated, env.is_truncated(state, env_params)

  def reset(key):
    with _standard():
      return env.reset(key, env_params)

  # A fresh state may hold Python numbers where a later one holds arrays: scans want one type.
  key = jax.eval_shape(lambda: jax.random.key(0))
  first = jax.eval_shape(reset, key)
  action = jax.ShapeDtypeStruct(
    shape if continuous else (), jnp.float32 if continuous else jnp.int32
  )
  like = jax.eval_shape(move, first[1], action, key)[1]
  as_later = lambda state: jax.tree.map(_cast, state, like)

  def start(key):
    observation, state = reset(key)
    return as_later(state), _flat(observation)

  def step(state, action, key, fresh=None):
    if fresh is None:
      key, again = jax.random.split(key)
      fresh = start(again)
    observation, state, reward, terminated, truncated = move(state, action, key)
    terminated, truncated = (jnp.asarray(x, bool).reshape(()) for x in (terminated, truncated))
    final = _flat(observation)
    pick = lambda new, old: jnp.where(terminated | truncated, new, old)
    state, observation = jax.tree.map(pick, fresh, (as_later(state), final))
    return Step(
      state=state,
      observation=observation,
      reward=jnp.asarray(reward, jnp.float32).reshape(()),
      terminated=terminated,
      truncated=truncated & ~terminated,
      final=final,
    )

  return Control(
    name=name,
    observation=math.prod(first[0].shape),
    actions=math.prod(shape) if continuous else int(space.n),
    continuous=continuous,
    horizon=int(env_params.max_steps_in_episode),
    start=start,
    step=step,
  )


def _cast(x, like):
  return jax.lax.convert_element_type(x, like.dtype).reshape(like.shape)


def _flat(observation) -> Array:
  return jnp.asarray(observation, jnp.float32).reshape(-1)


@contextlib.contextmanager
def _standard():
  """gymnax mixes integers with floats and ranks with ranks: jax's defaults, whatever ours are."""
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


def _gymnax():
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies
    try:
      import gymnax
      import gymnax.registration
    except ImportError as error:
      raise UserError(
        f"env: gymnax cannot be imported ({error}); pip install 'grpo-jax[envs]'"
      ) from error
  return gymnax
