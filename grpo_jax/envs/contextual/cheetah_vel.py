"""Cheetah-Vel: MuJoCo's half cheetah is to run at a velocity that is not seen.

Task: a target v* uniform in [low, high] = [0, 3] m/s. Action: f32[6] in [-1, 1]. Reward of a step
that moved the torso by dx in dt = 0.05 s:  -|dx / dt - v*| - 0.05 ||a||^2. Observed: positions but
the one along x, and velocities (17 numbers). An episode ends after `horizon` steps.

"Mixture-of-Experts Meets In-Context Reinforcement Learning" (T2MIR, arXiv:2506.05426, from its
code): 50 tasks, 45 of them for training, episodes of 200 steps, starts within 0.1 of rest. There
the position of the torso is observed too (20 numbers); without it is gymnasium's HalfCheetah-v5.
Which targets and which 45 is ours (one seed). No optimal action is known.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpo_jax.envs import simulator
from grpo_jax.envs.contextual.family import Family, split
from grpo_jax.envs.contextual.unlabelled import check_tasks, unlabelled
from grpo_jax.names import between
from grpo_jax.types import Record, record

CONTROL_COST = 0.05
_NOISE = 0.1  # of the start: uniform for positions, a standard deviation for velocities


@record
class Task(Record):
  velocity: Float[Array, ""]


def make(
  *,
  tasks: int = 50,
  horizon: int = 200,
  steps: int = 800,
  low: float = 0.0,
  high: float = 3.0,
  share: float = 0.9,
  seed: int = 0,
) -> Family:
  """`share` of the tasks are for training; `seed`: of targets and split.

  Raises UserError for values out of range, and where MuJoCo is missing.
  """
  check_tasks("cheetah_vel", tasks, horizon, steps, share)
  between("cheetah_vel.high", high, above=low)
  sim = simulator.load("half_cheetah.xml", frames=5)
  every = np.random.RandomState(seed).uniform(low, high, tasks).astype(np.float32)
  train, heldout = (Task(velocity=every[ids]) for ids in split(tasks, share, seed))  # pyright: ignore

  def start(task, key):
    del task
    place, speed = jax.random.split(key)
    q, v = sim.positions, len(sim.rest) - sim.positions
    away = jax.random.uniform(place, (q,), minval=-_NOISE, maxval=_NOISE)
    return jnp.asarray(sim.rest) + jnp.concatenate([away, _NOISE * jax.random.normal(speed, (v,))])

  def step(task, state, action, key):
    del key
    after = simulator.advance(sim, state, action)
    velocity = (after[0] - state[0]) / sim.dt
    cost = CONTROL_COST * jnp.sum(jnp.clip(action, -1, 1) ** 2)
    return after, -jnp.abs(velocity - task.velocity) - cost

  observe = lambda state: state[1:]
  return unlabelled(
    "cheetah_vel",
    start=start,
    step=step,
    observe=observe,
    observation=len(sim.rest) - 1,
    actions=sim.actions,
    horizon=horizon,
    steps=steps,
    train=train,
    heldout=heldout,
  )
