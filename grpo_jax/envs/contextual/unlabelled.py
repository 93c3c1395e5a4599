"""What families of continuous control without known optimal actions have in common."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from grpo_jax.core.transitions import Transitions
from grpo_jax.envs.contextual.family import Family, draw
from grpo_jax.envs.world import check
from grpo_jax.errors import UserError


def check_tasks(name: str, tasks: int, horizon: int, steps: int, share: float) -> None:
  """UserError for sizes out of range; `share` of the tasks are for training."""
  check(f"{name}.tasks", tasks, 2)
  check(f"{name}.horizon", horizon, 1)
  check(f"{name}.steps", steps, 1)
  if not 1 <= int(share * tasks) < tasks:
    raise UserError(f"{name}.share={share}: must leave tasks for training and for testing")


def unlabelled(name: str, *, start, step, observe, actions: int, horizon: int, **rest) -> Family:
  """A family of continuous control without known optimal actions, queried where episodes start; its
  contexts are of uniform actions. `rest`: the other fields, `train` among them."""
  act = lambda key: jax.random.uniform(key, (actions,), minval=-1.0, maxval=1.0)
  return Family(
    name=name,
    actions=actions,
    horizon=horizon,
    task=lambda key: draw(rest["train"], key),
    start=start,
    step=step,
    observe=observe,
    label=no_label(name),
    mean=lambda task, state, action: step(task, state, action, None)[1],
    behave=lambda task, key, steps: walk(
      task, key, steps, start=start, act=act, step=step, observe=observe, horizon=horizon
    ),
    query=start,
    best=lambda task: jnp.float32(jnp.nan),
    continuous=True,
    labelled=False,
    **rest,
  )


def no_label(name: str) -> Callable:
  """The `label` of a family whose optimal actions nobody knows: a UserError."""

  def label(task, state):
    del task, state
    raise UserError(f"family={name}: no optimal action is known; read histories, tokens='episodes'")

  return label


def walk(task, key: Array, steps: int, *, start, act, step, observe, horizon: int) -> Transitions:
  """Transitions of a policy that does not look, act(key), in episodes of `horizon` steps."""

  def one(state, now):
    at, key = now
    again, how, then = jax.random.split(key, 3)
    fresh = start(task, again)
    state = jax.tree.map(lambda x, y: jnp.where(at % horizon == 0, x, y), fresh, state)
    action = act(how)
    after, reward = step(task, state, action, then)
    return after, Transitions(
      state=observe(state), action=action, next_state=observe(after), reward=reward
    )

  now = jnp.arange(steps, dtype=jnp.int32), jax.random.split(key, steps)
  return jax.lax.scan(one, start(task, key), now)[1]
