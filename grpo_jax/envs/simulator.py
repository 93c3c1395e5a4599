"""MuJoCo as a pure function that a JAX program calls: all copies of a model at once, on the host.

  sim = load("half_cheetah.xml", frames=5)      a model among gymnasium's, the extra `mujoco`
  after = advance(sim, state, action, params)    inside jit, vmap and scan

A state is positions and velocities; what else MuJoCo keeps from step to step, the solver's warm
start, begins at zero at every call, so that equal arguments give equal results. Under vmap, of any
depth, one call to the host steps all states. Gradients do not pass.
"""

import contextlib
import copy
import dataclasses
import importlib
import importlib.util
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Simulator:
  """A model, and how its copies go on.

  advance(states f64[B, Q + V], actions f64[B, A], params {field: f64[B, ...]}) -> f64[B, Q + V]
      the states after `dt` seconds under constant controls, each with its own values of these
      fields of the model; {}: the model as it is
  """

  rest: np.ndarray  # f32[Q + V]: positions, then velocities, where an episode begins
  positions: int  # Q; the first is how far along x
  actions: int  # A: controls in [-1, 1]
  dt: float  # seconds of one step
  fields: Mapping[str, np.ndarray]  # of the model: masses and so on, as they are
  advance: Callable[[np.ndarray, np.ndarray, Mapping[str, np.ndarray]], np.ndarray]


def advance(
  sim: Simulator,
  state: Float[Array, " QV"],
  action: Float[Array, " A"],
  params: Mapping[str, Array] | None = None,
) -> Float[Array, " QV"]:
  """The state after one step of one copy; vmap for many. Actions are clipped to [-1, 1]."""

  def host(state, action, params):
    lead = np.shape(state)[:-1]
    count = int(np.prod(lead, dtype=int))
    flat = lambda x: np.asarray(x, np.float64).reshape(count, *np.shape(x)[len(lead) :])
    after = sim.advance(flat(state), flat(action), {k: flat(v) for k, v in params.items()})
    return after.reshape(*lead, -1).astype(np.float32)

  out = jax.ShapeDtypeStruct(state.shape, jnp.float32)
  action = jnp.clip(action, -1, 1)
  return jax.pure_callback(
    host, out, state, action, dict(params or {}), vmap_method="broadcast_all"
  )


def load(file: str, frames: int, fields: tuple[str, ...] = ()) -> Simulator:
  """The model of this file of gymnasium's, `frames` steps of its own a step of ours.

  Raises UserError where gymnasium or MuJoCo is missing.
  """
  mujoco, rollout = _mujoco()
  with _quiet(mujoco):
    model = mujoco.MjModel.from_xml_path(str(_assets() / file))
  data, lock = mujoco.MjData(model), threading.Lock()
  models: dict[bytes, Any] = {}  # of every task that was seen: as many as a family has

  def model_of(params: Mapping[str, np.ndarray], row: int):
    key = b"".join(params[name][row].tobytes() for name in sorted(params))
    if key not in models:
      models[key] = copy.copy(model)
      for name, values in params.items():
        getattr(models[key], name)[:] = values[row]
    return models[key]

  def advance(states, actions, params):
    full = np.concatenate([np.zeros((len(states), 1)), states], axis=1)  # time comes first
    controls = np.repeat(actions[:, None], frames, axis=1)
    with lock, _quiet(mujoco):  # devices of one program call at once
      many = [model_of(params, row) for row in range(len(states))] if params else model
      after, _ = rollout.rollout(many, data, full, controls)
    return after[:, -1, 1:]

  return Simulator(
    rest=np.concatenate([model.qpos0, np.zeros(model.nv)]).astype(np.float32),
    positions=model.nq,
    actions=model.nu,
    dt=frames * model.opt.timestep,
    fields={name: np.array(getattr(model, name)) for name in fields},
    advance=advance,
  )


@contextlib.contextmanager
def _quiet(mujoco):
  """MuJoCo's warnings, of old words in gymnasium's files and of states that left the range of
  numbers (it begins those anew), would go to the screen and to a file in the working folder."""
  mujoco.set_mju_user_warning(lambda text: None)
  try:
    yield
  finally:
    mujoco.set_mju_user_warning(None)


def _mujoco():
  try:
    return importlib.import_module("mujoco"), importlib.import_module("mujoco.rollout")
  except ImportError as error:
    raise UserError(
      f"family: MuJoCo cannot be imported ({error}); pip install 'grpo-jax[mujoco]'"
    ) from error


def _assets() -> Path:
  found = importlib.util.find_spec("gymnasium")  # its own import would want a renderer
  if found is None:
    raise UserError("family: gymnasium is not installed; pip install 'grpo-jax[mujoco]'")
  return Path(next(iter(found.submodule_search_locations or ()))) / "envs/mujoco/assets"
