"""What an online learner is, and how it is played on a task."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.types import Record, record


@dataclasses.dataclass(frozen=True)
class Learner:
  """An algorithm that acts and is told what came of it; pure functions of one task, vmap for many.

  init() -> state
  act(state, key, context=None) -> i32[]
  observe(state, action, reward, context=None) -> state

  `context` is what is seen before acting; only contextual learners read it.
  """

  name: str
  init: Callable[[], Any]
  act: Callable[..., Array]
  observe: Callable[..., Any]


@record
class Played(Record):
  """T steps of a learner on one task."""

  action: Int[Array, " T"]
  reward: Float[Array, " T"]
  suboptimality: Float[Array, " T"]  # expected reward of the optimal action minus that of this one


def play(learner: Learner, family: Any, task: Any, key: Array, steps: int) -> Played:
  """The learner on one task of a family of bandits (`envs.contextual`, horizon 1).

  The regret after t steps is the sum of the first t of `suboptimality`: of expected rewards, so the
  noise of the rewards is not in it.
  """
  first, rest = jax.random.split(key)

  def one(carry, key):
    state, memory = carry
    choice, outcome = jax.random.split(key)
    context = family.observe(state)
    action = learner.act(memory, choice, context)
    lost = family.lost(task, state, action)
    after, reward = family.step(task, state, action, outcome)
    memory = learner.observe(memory, action, reward, context)
    return (after, memory), Played(action=action, reward=reward, suboptimality=lost)

  begin = (family.start(task, first), learner.init())
  return jax.lax.scan(one, begin, jax.random.split(rest, steps))[1]


def first_best(
  score: Float[Array, " A"], count: Float[Array, " A"] | None = None
) -> Int[Array, ""]:
  """The arm of the greatest score, the first of several; with `count`, untried arms in order
  before all others."""
  if count is not None:
    score = jnp.where(count == 0, jnp.inf, score)
  return jnp.argmax(score).astype(jnp.int32)
