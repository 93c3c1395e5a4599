"""Walker-Param: MuJoCo's two-legged walker runs forward; its body is a task's own and not seen.

Task: the model's body masses and inertias (each times 1.5^z), damping of the joints (1.3^z) and
friction of the shapes (1.5^z), every number with its own z uniform in [-limit, limit] = [-3, 3].
Action: f32[6] in [-1, 1]. Reward of a step that moved the torso by dx in dt = 0.008 s:
dx / dt + 1 - 0.001 ||a||^2, less 1 where the torso is outside (0.8, 2) m or (-1, 1) rad. Observed:
positions but the one along x, velocities held in [-10, 10] (17 numbers). An episode ends after
`horizon` steps, fallen or not.

"Mixture-of-Experts Meets In-Context Reinforcement Learning" (T2MIR, arXiv:2506.05426, from its
code, after rand_param_envs): 50 tasks, 45 of them for training, 200 steps, starts within 0.005 of
rest, four steps of the simulator a step. Our reading: what MuJoCo derives from masses when it
compiles a model stays as it was, as there; the model is gymnasium's walker2d_v5.xml; which bodies
and which 45 (one seed). No optimal action is known.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpo_jax.envs import simulator
from grpo_jax.envs.contextual.family import Family, split
from grpo_jax.envs.contextual.unlabelled import check_tasks, unlabelled
from grpo_jax.envs.world import check
from grpo_jax.types import Record, record

CONTROL_COST = 1e-3
BASE = {"body_mass": 1.5, "body_inertia": 1.5, "dof_damping": 1.3, "geom_friction": 1.5}
_NOISE = 0.005  # of the start, uniform
_FAST = 10.0


@record
class Task(Record):
  """Fields of the model, for bodies, degrees of freedom and shapes in its order."""

  body_mass: Float[Array, " b"]
  body_inertia: Float[Array, "b 3"]
  dof_damping: Float[Array, " V"]
  geom_friction: Float[Array, "g 3"]


def make(
  *,
  tasks: int = 50,
  horizon: int = 200,
  steps: int = 800,
  limit: float = 3.0,
  share: float = 0.9,
  seed: int = 0,
) -> Family:
  """`limit`: of z; 0 leaves all bodies as they are. `share` of the tasks are for training; `seed`:
  of bodies and split.

  Raises UserError for values out of range, and where MuJoCo is missing.
  """
  check_tasks("walker_param", tasks, horizon, steps, share)
  check("walker_param.limit", limit, 0, 10)
  sim = simulator.load("walker2d_v5.xml", frames=4, fields=tuple(BASE))
  every = bodies(sim, tasks, limit, seed)
  halves = (jax.tree.map(lambda x, ids=ids: x[ids], every) for ids in split(tasks, share, seed))
  train, heldout = halves

  def start(task, key):
    del task
    rest = jnp.asarray(sim.rest)
    return rest + jax.random.uniform(key, rest.shape, minval=-_NOISE, maxval=_NOISE)

  def step(task, state, action, key):
    del key
    after = simulator.advance(sim, state, action, vars(task))
    velocity = (after[0] - state[0]) / sim.dt
    upright = (after[1] > 0.8) & (after[1] < 2.0) & (jnp.abs(after[2]) < 1.0)
    cost = CONTROL_COST * jnp.sum(jnp.clip(action, -1, 1) ** 2)
    return after, velocity + jnp.where(upright, 1.0, 0.0) - cost

  def observe(state):
    fast = jnp.clip(state[sim.positions :], -_FAST, _FAST)
    return jnp.concatenate([state[1 : sim.positions], fast])

  return unlabelled(
    "walker_param",
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


def bodies(sim: simulator.Simulator, count: int, limit: float, seed: int) -> Task:
  """`count` tasks, stacked."""
  rng = np.random.RandomState(seed)
  made = {}
  for name, base in BASE.items():
    z = rng.uniform(-limit, limit, (count, *sim.fields[name].shape))
    made[name] = (sim.fields[name] * base**z).astype(np.float32)
  return Task(**made)
