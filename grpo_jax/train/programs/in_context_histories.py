"""Learning histories as contexts of Algorithm Distillation and DPT: made once, or read, and held.

The learner is tabular Q-learning on every task, or soft actor-critic where actions are continuous.
A context is a contiguous window of one history, anywhere in it (T2MIR, arXiv:2506.05426, on
Darkroom: of the unsorted history), or some of its episodes in ascending order of return (on
continuous control). Its label is the learner's next action (Algorithm Distillation) or the optimal
one at a query state (DPT).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from grpo_jax.core.transitions import Histories
from grpo_jax.data import tfds_history_source
from grpo_jax.envs.contextual.family import Family
from grpo_jax.errors import UserError
from grpo_jax.rollout.in_context.play import by_return
from grpo_jax.tabular import q_learning
from grpo_jax.train import soft_actor_critic
from grpo_jax.train.programs.in_context_data import Source

Say = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Where histories come from: the folder of a data set, or learners of our own. The numbers of
  the learner are ours: neither paper names any."""

  path: str = ""  # of tfds_history_source.write, with splits train and heldout; "": make them
  learners: int = 4  # on every task
  episodes: int = 100
  rate: float = 0.5
  gamma: float = 0.9
  epsilon: tuple[float, float] = (1.0, 0.05)  # from the first episode to the last
  seed: int = 0
  sac: soft_actor_critic.Sizes = dataclasses.field(default_factory=soft_actor_critic.Sizes)

  def __post_init__(self):
    for name in ("learners", "episodes"):
      if getattr(self, name) < 1:
        raise UserError(f"data.histories.{name}={getattr(self, name)}: must be at least 1")
    if len(self.epsilon) != 2 or not all(0 <= e <= 1 for e in self.epsilon):
      raise UserError(f"data.histories.epsilon={self.epsilon}: give two numbers from 0 to 1")


def plan_of(fields: dict[str, Any]) -> Sizes:
  """UserError for a field that there is not."""
  _known("data.histories", fields, Sizes)
  sac = dict(fields.get("sac", {}))
  _known("data.histories.sac", sac, soft_actor_critic.Sizes)
  made: Any = {
    "epsilon": tuple(fields.get("epsilon", Sizes.epsilon)),
    "sac": soft_actor_critic.Sizes(**sac),
  }
  return Sizes(**fields | made)


def _known(place: str, fields: dict[str, Any], record) -> None:
  known = [f.name for f in dataclasses.fields(record)]
  for name in fields:
    if name not in known:
      raise UserError(f"{place}.{name}: unknown; use one of {', '.join(known)}")


def obtain(
  family: Family, steps: int, plan: Sizes, split: str = "train", say: Say = print
) -> Histories:
  """Histories of all training or held-out tasks. UserError where the family has no list of them,
  where stored ones are of other tasks, or shorter than a context of `steps`."""
  tasks = {"train": family.train, "heldout": family.heldout}[split]
  if tasks is None:
    raise UserError(f"data.histories: {family.name} has no list of tasks to learn histories on")
  if plan.path:
    found = tfds_history_source.read(plan.path, split)
  else:
    found = make(family, tasks, plan, jax.random.key(plan.seed + (split == "heldout")), say)
  return checked(family, steps, plan, tasks, found)


def both(family: Family, steps: int, plan: Sizes, say: Say = print) -> tuple[Histories, Histories]:
  """Histories of training and of held-out tasks, as `obtain`; continuous learners that are to be
  made learn side by side, in one program."""
  if plan.path or not family.continuous or family.train is None or family.heldout is None:
    first = obtain(family, steps, plan, "train", say)
    return first, obtain(family, steps, plan, "heldout", say)
  tasks = jax.tree.map(lambda x, y: np.concatenate([x, y]), family.train, family.heldout)
  every = make(family, tasks, plan, jax.random.key(plan.seed), say)
  size = jax.tree.leaves(family.train)[0].shape[0]
  first, rest = (jax.tree.map(lambda x, s=s: x[s], every) for s in (slice(size), slice(size, None)))
  check = lambda tasks, found: checked(family, steps, plan, tasks, found)
  return check(family.train, first), check(family.heldout, rest)


def checked(family: Family, steps: int, plan: Sizes, tasks: Any, found: Histories) -> Histories:
  """`found`; UserError as in `obtain`."""
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


def make(family: Family, tasks: Any, plan: Sizes, key: Array, say: Say = print) -> Histories:
  """`plan.learners` learners on each of these stacked tasks."""
  tasks = jax.tree.map(jnp.asarray, tasks)
  count = jax.tree.leaves(tasks)[0].shape[0]
  if family.continuous:
    each = jax.tree.map(lambda x: jnp.repeat(x, plan.learners, axis=0), tasks)
    found = soft_actor_critic.learn(
      family, each, key, episodes=plan.episodes, plan=plan.sac, say=say
    )
    fold = lambda x: np.asarray(x).reshape(count, plan.learners, *x.shape[1:])
    return Histories(tasks=jax.tree.map(np.asarray, named(tasks)), steps=jax.tree.map(fold, found))
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


def source(histories: Histories, horizon: int = 0) -> Source:
  """Windows of the histories of the drawn tasks, each of any learner and from any step on; with
  `horizon`, any episodes of it, without repeats, in ascending order of their returns.

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
    if horizon:
      picked = jax.random.permutation(when, length // horizon)[: steps // horizon]
      fold = lambda x: x[:, :, : length // horizon * horizon].reshape(
        *x.shape[:2], -1, horizon, *x.shape[3:]
      )
      episodes = jax.tree.map(lambda x: fold(x)[jnp.argmax(same), learner, picked], held.steps)
      flat = jax.tree.map(lambda x: x.reshape(steps, *x.shape[2:]), episodes)
      return by_return(flat, horizon)
    first = jax.random.randint(when, (), 0, length - steps + 1)
    window = lambda x: jax.lax.dynamic_slice_in_dim(x[jnp.argmax(same), learner], first, steps)
    return jax.tree.map(window, held.steps)

  return lambda tasks, keys, steps: jax.vmap(lambda task, key: one(task, key, steps))(tasks, keys)


def progress(histories: Histories, horizon: int, parts: int = 10) -> np.ndarray:
  """f64[N, parts]: mean return of the episodes in each of these parts of the learners' lives, the
  first the oldest; of fewer episodes than parts, each by itself."""
  reward = np.asarray(histories.steps.reward, np.float64)
  count = reward.shape[2] // horizon
  returns = reward[:, :, : count * horizon].reshape(*reward.shape[:2], count, horizon).sum(axis=3)
  stretches = np.array_split(returns.mean(axis=1), min(parts, count), axis=1)
  return np.stack([x.mean(axis=1) for x in stretches], axis=1)
