"""Point-Robot: a point on a plane is steered to a goal that is not seen.

State: the position, at first uniform in [-start, start]^2. Action: f32[2], held in [-1, 1]^2; it
moves the point by `reach` times itself. Reward: minus the distance to the goal after the move.
"Mixture-of-Experts Meets In-Context Reinforcement Learning" (T2MIR, arXiv:2506.05426, from its
code): horizon and context of 20 steps, start = reach = 0.1, 50 goals uniform in [-1, 1]^2, 45 of
them for training. Which goals and which 45 is ours (one seed).

Label: clip((goal - position) / reach, -1, 1). Each coordinate is then as near as it can be at every
time, so no other action does better, now or later.

The paper's contexts are histories of soft actor-critic; here they are independent transitions with
uniform positions in [-1, 1]^2 and uniform actions (our reading, after DPT's for Darkroom).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpo_jax.envs.contextual.family import Family, draw, independent, split
from grpo_jax.envs.world import check
from grpo_jax.types import Record, record

_STARTS = 16  # `best` is a mean over 16 x 16 midpoints


@record
class Task(Record):
  goal: Float[Array, " 2"]


def make(
  *,
  goals: int = 50,
  horizon: int = 20,
  steps: int = 20,
  start: float = 0.1,
  reach: float = 0.1,
  seed: int = 0,
) -> Family:
  """`goals` = 0: fresh uniform goals, nothing held out; `seed`: of goals and split.

  `best` is the mean over starts by the midpoint rule. Raises UserError for values out of range.
  """
  check("point_robot.goals", goals, 0)
  if goals:
    check("point_robot.goals", goals, 2)
  check("point_robot.horizon", horizon, 1)
  check("point_robot.steps", steps, 1)
  check("point_robot.start", start, 0, 1)
  check("point_robot.reach", reach, 1e-6, 10)
  every = np.random.RandomState(seed).uniform(-1, 1, (goals, 2)).astype(np.float32)
  train, heldout = (Task(goal=every[ids]) for ids in split(goals, 0.9, seed))  # pyright: ignore
  anywhere = lambda key: jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)

  def step(task, state, action, key):
    del key
    state = state + reach * jnp.clip(action, -1, 1)
    return state, -distance(state, task.goal)

  def best(task):
    middle = jnp.asarray((np.arange(_STARTS) + 0.5) / _STARTS * 2 - 1, jnp.float32) * start
    x, y = (jnp.abs(goal - middle) for goal in task.goal)

    def reward(after):
      dx, dy = (jnp.maximum(d - reach * after, 0) for d in (x, y))
      return -jnp.mean(jnp.sqrt(dx[:, None] ** 2 + dy[None, :] ** 2))

    return jnp.sum(jax.vmap(reward)(jnp.arange(1, horizon + 1, dtype=jnp.float32)))

  observe = lambda state: state
  query = lambda task, key: anywhere(key)
  return Family(
    name="point_robot",
    observation=2,
    actions=2,
    horizon=horizon,
    steps=steps,
    task=(lambda key: draw(train, key)) if goals else (lambda key: Task(goal=anywhere(key))),
    start=lambda task, key: start * anywhere(key),
    step=step,
    observe=observe,
    label=lambda task, state: jnp.clip((task.goal - state) / reach, -1, 1),
    mean=lambda task, state, action: step(task, state, action, None)[1],
    behave=lambda task, key, steps: independent(
      task, key, steps, query=query, act=anywhere, step=step, observe=observe
    ),
    query=query,
    best=best,
    train=train if goals else None,
    heldout=heldout if goals else None,
    continuous=True,
  )


def distance(a: Float[Array, " 2"], b: Float[Array, " 2"]) -> Float[Array, ""]:
  return jnp.sqrt(jnp.sum((a - b) ** 2))
