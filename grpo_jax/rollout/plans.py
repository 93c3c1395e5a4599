"""Plans by the name of their class: plan `Tree` is played by rollout/tree.py.

A plan is frozen data (types.Plan, or a subclass in a paper's file) and one file of this folder:

  LOOPS                            the loops that can play it
  SUPPLIES                         needs of methods that it fills (train/supply.py)
  check(plan, where)               UserError where plan and world or model do not go together
  play(plan, game) -> Draw       in token worlds, inside jit: the loop "fused"
  collect(plan, ask) -> Collected  with a language model and rewards on the host: the loop "llm"

A new one touches nothing else: a plan of a loop in LOOPS needs the function of that loop.
"""

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.envs.world import Problem, World
from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.types import Batch, Metrics, Plan, Rollouts


class Where(NamedTuple):
  """What `check` may know of the world or the model."""

  loop: str
  name: str  # "world reverse", "sample.max_new_tokens"
  budget: int  # tokens of the longest completion
  turns: bool = False  # the world writes between the policy's tokens


class Game(NamedTuple):
  """What `play` is given: problems of a token world, at least `keep`, as the plan asked for."""

  world: World
  config: ModelConfig
  params: Any
  problems: Problem
  ids: Int[Array, " M"]
  keys: Array  # one typed key a problem
  group: int
  keep: int  # N: prompts of the batch
  train: Callable[[Array], Problem] | None = None  # the training problems with these ids


class Draw(NamedTuple):
  rollouts: Rollouts
  batch: Batch
  problems: Problem  # of the N prompts of the batch
  watched: Metrics  # of all that was sampled


def of(plan: Plan) -> ModuleType:
  """The file that plays it. UserError if there is none."""
  name = f"{__package__}.{type(plan).__name__.lower()}"
  if importlib.util.find_spec(name) is None:
    raise UserError(
      f"plan {type(plan).__name__}: nothing plays it; add {name.replace('.', '/')}.py"
    )
  return importlib.import_module(name)


def check(plan: Plan, where: Where) -> None:
  """Raises UserError where the loop, the world or the model cannot do what the plan asks for."""
  module = of(plan)
  if where.loop not in module.LOOPS:
    raise UserError(
      f"loop {where.loop!r}: it does not play the plan {type(plan).__name__}, which the method "
      f"learns from; use loop={' or '.join(map(repr, module.LOOPS))}"
    )
  module.check(plan, where)


def observe(
  rollouts: Rollouts,
  sampled: Array,
  reach: Float[Array, "N G"] | None = None,
  ends: Bool[Array, "N G"] | None = None,
) -> Metrics:
  """What a person watches, over all that was sampled. sampled: how many tokens that were.

  reach, ends: of rollouts that branch, the share of a prompt's completions that pass through each,
  and those that end in it.
  """
  reward = rollouts.reward
  if reach is None or ends is None:
    share = reach = jnp.full(reward.shape, 1 / reward.shape[1], jnp.float32)
  else:
    share = jnp.where(ends, reach, 0)
  mean = lambda x, share=share: jnp.sum(share * x.astype(jnp.float32)) / reward.shape[0]
  most = jnp.max(jnp.where(share > 0, reward, -jnp.inf), axis=1)
  least = jnp.min(jnp.where(share > 0, reward, jnp.inf), axis=1)
  return {
    "reward": mean(reward),
    "correct": mean(rollouts.correct),
    "length": mean(rollouts.length, reach),
    "truncated": mean(rollouts.truncated),
    "zero_variance": jnp.mean((most == least).astype(jnp.float32)),
    "sampled": sampled,
  }
