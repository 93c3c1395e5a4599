"""Kimi k1.5 (paper 25): several updates a batch, negatives, length reward, sampling by success."""

import dataclasses

import jax.numpy as jnp

from experiments.common import first_protocol as study
from experiments.common.first_protocol import more, not_less
from grpo_jax import envs
from grpo_jax.envs.world import PAD, STOP

CLAIM = (
  "With four updates a batch, mirror descent on all samples ends no worse than REINFORCE, and "
  "learns faster than on the samples above the mean alone; the length reward shortens answers at "
  "equal accuracy; drawing prompts by 1 - success learns hard prompts faster where 70% are solved."
)
NOTES = (
  "No training code is public; loss form and tau are ours. The start of 'sum' imitates answers "
  "with 2 to 7 steps that nobody asks for, so that there is something to shorten. 'mix' is 70% "
  "easy and 30% hard prompts of the world gated, out of 512 fixed ones, from a start that solves "
  "most easy ones. Arms but 'length' have no length reward, arms but 'by_success' draw uniformly. "
  "'kept_moments' does not reset Adam."
)
CURVES = (
  ("sum", "accuracy"),
  ("sum", "length"),
  ("sum", "train:entropy"),
  ("mix", "accuracy"),
  ("mix", "part:hard"),
)
_BUDGET = 12


def get_config(variant: str = ""):
  own = {"length_weight": 0.0, "prioritize": False}
  kimi = lambda skip="mix", **args: {"method": "kimi_k1_5", "args": own | args, "skip": (skip,)}
  other = lambda name: {"method": name, "skip": ("mix",)}
  return study.config(
    "kimi_k1_5",
    variant,
    plan={
      "updates": 120,
      "eval_every": 12,
      "prompts": 16,
      "group": 8,
      "heldout": 256,
      "split": "id",
      "eval_temperature": 1.0,
      "warm_steps": 500,
      "warm_until": 0.3,
      "mini": 4,
    },
    worlds={
      "sum": {"world": "free_length", "params": {"answer": _BUDGET}},
      "mix": {
        "world": "gated",
        "params": {"hard": 0.3, "hopeless": 0.0, "depth": 2},
        "plan": {"problems": 512, "warm_until": 0.6},
      },
    },
    arms={
      "mirror": kimi(skip=""),
      "positives": kimi(negatives=False),
      "length": kimi(length_weight=0.5),
      "kept_moments": kimi(reset_optimizer=False),
      "by_success": kimi(skip="sum", prioritize=True),
      "reinforce": other("reinforce"),
      "grpo": other("grpo"),
    },
    lr=3e-4,
  )


def warm_world(world):
  """Sums are answered with 2 to 7 steps too many."""
  if world.name != "free_length":
    return world
  mark, arrow = world.symbols.index("#"), world.symbols.index(">")
  first = 2  # the token of the number 0

  def solution(problem):
    result = problem.data["result"]
    steps = 2 + (problem.tokens[1] * 7 + result * 3) % 6
    place = jnp.arange(_BUDGET)
    tokens = jnp.where(place < steps, mark, PAD)
    tokens = jnp.where(place == steps, arrow, tokens)
    tokens = jnp.where(place == steps + 1, result + first, tokens)
    return jnp.where(place == steps + 2, STOP, tokens)

  return dataclasses.replace(envs.get("free_length", answer=_BUDGET), solution=solution)


def statements(d):
  final, area = (lambda arm: d.final("sum", arm)), (lambda arm: d.area("sum", arm))
  length = lambda arm: d.final("sum", arm, "length")
  return [
    not_less("accuracy at the end: not below REINFORCE", final("mirror"), final("reinforce"), 0.02),
    more("accuracy over training: above positives alone", area("mirror"), area("positives"), 0.01),
    more(
      "length: without the length reward above with it", length("mirror"), length("length"), 0.2
    ),
    not_less("accuracy with the length reward not below", final("length"), final("mirror"), 0.02),
    more(
      "hard prompts over training: by success above uniform",
      d.area("mix", "by_success", "part:hard"),
      d.area("mix", "mirror", "part:hard"),
      margin=0.005,
    ),
  ]
