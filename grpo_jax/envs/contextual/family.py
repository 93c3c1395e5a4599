"""What an in-context learner is trained on: a distribution over small control problems.

Letters: S numbers a state is seen as, A actions (or numbers an action has, if continuous), H steps
of a context. All functions are of ONE task and pure: batches are made by vmap.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpo_jax.core.transitions import Transitions


@dataclasses.dataclass(frozen=True)
class Family:
  """Tasks tau ~ T_pre, how they go on, and who acts optimally in them.

  task(key) -> Task                        a pytree: one task of the pretraining distribution
  start(task, key) -> state                a pytree, never empty: the start of an episode
  step(task, state, action, key) -> (state, f32[])
      an episode ends after `horizon` steps and in no other way; one may go on beyond it
  observe(state) -> f32[S]                 what the learner sees
  label(task, state) -> i32[] or f32[A]    an optimal action
  mean(task, state, action) -> f32[]       expected reward of one step
  behave(task, key, steps) -> Transitions  a pretraining context
  query(task, key) -> state                where pretraining asks for the label
  best(task) -> f32[]                      expected return of an optimal episode
  labelled                                 False: no optimal action is known; `label` is an error
                                           and `best` is nan
  train, heldout                           training and held-out tasks, stacked [n]; None: draw
                                           fresh ones
  shuffle                                  False where an adaptive learner made the contexts, whose
                                           order then says something
  states, index(state) -> i32[]            how many states there are, and which one this is: only
                                           families with finitely many
  recall(f32[S]) -> state                  the inverse of `observe`, where all of the state is seen
  """

  name: str
  observation: int
  actions: int
  horizon: int
  steps: int
  task: Callable[[Array], Any]
  start: Callable[[Any, Array], Any]
  step: Callable[[Any, Any, Array, Array], tuple[Any, Array]]
  observe: Callable[[Any], Array]
  label: Callable[[Any, Any], Array]
  mean: Callable[[Any, Any, Array], Array]
  behave: Callable[[Any, Array, int], Transitions]
  query: Callable[[Any, Array], Any]
  best: Callable[[Any], Array]
  train: Any = None
  heldout: Any = None
  shuffle: bool = True
  continuous: bool = False
  states: int | None = None
  index: Callable[[Any], Array] | None = None
  recall: Callable[[Array], Any] | None = None
  labelled: bool = True

  def lost(self, task, state, action) -> Float[Array, ""]:
    """Suboptimality of one step: expected reward of the optimal action minus that of this one."""
    return self.mean(task, state, self.label(task, state)) - self.mean(task, state, action)


def split(count: int, share: float = 0.8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(training, held-out) ids: 0..count-1 shuffled once, the first int(share count) for training.

  The order is that of numpy's `RandomState(seed).shuffle`, as in DPT's released code.
  """
  order = np.random.RandomState(seed).permutation(count).astype(np.int32)
  first = int(share * count)
  return order[:first], order[first:]


def draw(tasks, key: Array):
  """One of these stacked tasks, uniformly."""
  count = jax.tree.leaves(tasks)[0].shape[0]
  which = jax.random.randint(key, (), 0, count)
  return jax.tree.map(lambda x: jnp.asarray(x)[which], tasks)


def independent(task, key: Array, steps: int, *, query, act, step, observe) -> Transitions:
  """Transitions that do not follow each other: each from its own state ~ query(task, key) by its
  own action ~ act(key). DPT's contexts for MDPs: coverage, not a walk."""

  def one(key):
    where, how, then = jax.random.split(key, 3)
    state, action = query(task, where), act(how)
    after, reward = step(task, state, action, then)
    return Transitions(
      state=observe(state), action=action, next_state=observe(after), reward=reward
    )

  return jax.vmap(one)(jax.random.split(key, steps))
