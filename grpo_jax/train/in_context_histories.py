"""Learning histories as contexts of Algorithm Distillation and DPT: made once, or read, and held.

The learner is tabular Q-learning on every task. A context is a contiguous window of one history,
anywhere in it (T2MIR, arXiv:2506.05426, on Darkroom: of the unsorted history); its label is the
learner's next action (Algorithm Distillation) or the optimal one at a query state (DPT).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from grpo_jax.core.transitions import Histories
from grpo_jax.data import tfds_history_source
from grpo_jax.envs.contextual.family import Family
from grpo_jax.errors import UserError
from grpo_jax.tabular import q_learning
from grpo_jax.train.in_context_data import Source


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where histories come from: the folder of a data set, or learners of our own. The numbers of
  the learner are ours: neither paper names any."""

  path: str = ""  # of tfds_history_source.write, with splits train and heldout; "": make them
  learners: int = 4  # on every task
  episodes: int = 100
  rate: float = 0.5
  gamma: float = 0.9
  epsilon: tuple[float, float] = (1.0, 0.05)  # from the first episode to the last
  seed: int = 0

  def __post_init__(self):
    for name in ("learners", "episodes"):
      if getattr(self, name) < 1:
        raise UserError(f"data.histories.{name}={getattr(self, name)}: must be at least 1")
    if len(self.epsilon) != 2 or not all(0 <= e <= 1 for e in self.epsilon):
      raise UserError(f"data.histories.epsilon={self.epsilon}: give two numbers from 0 to 1")


def plan_of(fields: dict) -> Plan:
  """UserError for a field that there is not."""
  known = [f.name for f in dataclasses.fields(Plan)]
  for name in fields:
    if name not in known:
      raise UserError(f"data.histories.{name}: unknown; use one of {', '.join(known)}")
  values: dict[str, Any] = fields | {"epsilon": tuple(fields.get("epsilon", Plan.epsilon))}
  return Plan(**values)


def obtain(family: Family, steps: int, plan: Plan, split: str = "train") -> Histories:
  """Histories of all training or held-out tasks. UserError where the family has no list of them,
  where stored ones are of other tasks, or shorter than a context of `steps`."""
  tasks = {"train": family.train, "heldout": family.heldout}[split]
  if tasks is None:
    raise UserError(f"data.histories: {family.name} has no list of tasks to learn histories on")
  if plan.path:
    found = tfds_history_source.read(plan.path, split)
  else:
    found = make(family, tasks, plan, jax.random.key(plan.seed + (split == "heldout")))
  want = named(tasks)
  same = found.tasks.keys() == want.keys() and all(
    np.array_equal(found.tasks[name], x) for name, x in want.items()
  )
  if not same:
    raise UserError(f"data.histories.path={plan.path!r}: made for other tasks than {family.name}'s")
  if found.steps.reward.shape[2] < steps:
    raise UserError(
      f"data.steps={steps}: histories have {found.steps.reward.shape[2]} steps; use more episodes"
    )
  return found


def make(family: Family, tasks: Any, plan: Plan, key: Array) -> Histories:
  """`plan.learners` Q-learners on each of these stacked tasks."""
  tasks = jax.tree.map(jnp.asarray, tasks)
  count = jax.tree.leaves(tasks)[0].shape[0]
  keys = jax.random.split(key, (count, plan.learners))
  learn = lambda task, key: (
    q_learning.learn(
      family,
      task,
      key,
      episodes=plan.episodes,
      rate=plan.rate,
      gamma=plan.gamma,
      epsilon=plan.epsilon,
    ).steps
  )
  steps = jax.jit(jax.vmap(jax.vmap(learn, (None, 0))))(tasks, keys)
  return jax.tree.map(np.asarray, Histories(tasks=named(tasks), steps=steps))


def named(tasks: Any) -> dict[str, Any]:
  """The leaves of tasks by name."""
  leaves = jax.tree_util.tree_leaves_with_path(tasks)
  return {jax.tree_util.keystr(path, simple=True, separator="_"): x for path, x in leaves}


def source(histories: Histories) -> Source:
  """Windows of the histories of the drawn tasks, each of any learner and from any step on.

  A task that has no history gets those of the first one: draw from the tasks they were made for.
  """
  held = jax.tree.map(jnp.asarray, histories)
  _, learners, length = held.steps.reward.shape

  def one(task, key, steps):
    same = jnp.bool_(True)
    for name, x in named(task).items():
      stored = held.tasks[name].reshape(held.tasks[name].shape[0], -1)
      same = same & jnp.all(stored == x.reshape(1, -1), axis=1)
    which, when = jax.random.split(key)
    learner = jax.random.randint(which, (), 0, learners)
    first = jax.random.randint(when, (), 0, length - steps + 1)
    window = lambda x: jax.lax.dynamic_slice_in_dim(x[jnp.argmax(same), learner], first, steps)
    return jax.tree.map(window, held.steps)

  return lambda tasks, keys, steps: jax.vmap(lambda task, key: one(task, key, steps))(tasks, keys)
