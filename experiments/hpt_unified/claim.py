"""HPT (paper 63): a gate by the pass rate, on prompts that RL, imitation or nobody solves."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.common import first_protocol as study
from experiments.common.first_protocol import more, not_less
from grpo_jax import envs
from grpo_jax.envs.world import PAD
from grpo_jax.train.programs import fused

CLAIM = (
  "Imitating a demonstration only where no rollout succeeds, and exploring elsewhere, solves at "
  "least as many easy and hard prompts as imitation alone, exploration alone and a constant mix of "
  "both, more than the same decisions dealt to random prompts, and takes less of the "
  "demonstrations' style on prompts that it can solve by itself; imitation fades over training."
)
NOTES = (
  "The start imitates plain answers of easy prompts only, until half of its samples succeed. "
  "Demonstrations of all prompts begin with a sign that the reward does not ask for: the style. "
  "'style' is its share on fresh easy prompts. Accuracy counts the 20% hopeless prompts, which "
  "nobody solves. Imitation followed by RL has no arm."
)
CURVES = (
  ("gated", "accuracy"),
  ("gated", "part:easy"),
  ("gated", "part:hard"),
  ("gated", "train:sft_share"),
  ("gated", "more:style"),
)


def get_config(variant: str = ""):
  hpt = lambda **args: {"method": "hpt_unified", "args": args}
  return study.config(
    "hpt_unified",
    variant,
    plan={
      "updates": 300,
      "eval_every": 30,
      "prompts": 16,
      "group": 8,
      "heldout": 256,
      "eval_temperature": 1.0,
      "warm_steps": 400,
      "warm_until": 0.5,
    },
    worlds={"gated": {"world": "gated"}},
    arms={
      "rl": hpt(gate=-1.0),
      "sft": hpt(gate=1.0),
      "mix": hpt(table=((0.5, 0.5),)),
      "hpt_0": hpt(gate=0.0),
      "hpt_2_of_8": hpt(gate=0.25),
      "random_gate": hpt(gate=0.0, shuffle=True),
    },
    lr=1e-3,
  )


def warm_world(world):
  """Easy prompts, answered without the style."""
  easy = _easy()
  plain = lambda problem: jnp.append(easy.solution(problem)[1:], jnp.int32(PAD))
  return dataclasses.replace(easy, solution=plain)


def _easy():
  return envs.get("gated", hard=0.0, hopeless=0.0)


def probe(cell):
  """The share of the demonstrations' style on easy prompts, at the end."""
  del cell
  world = _easy()
  plan = fused.Sizes(heldout=512, eval_temperature=1.0)
  evaluate = jax.jit(fused.make_evaluate(world, fused.tiny_config(world.vocab), plan))
  styled = world.parts.index("styled")
  return lambda state, start, seed: {"style": evaluate(state.params).parts[styled]}


def statements(d):
  final = lambda arm: d.final("gated", arm)
  style = lambda arm: d.final("gated", arm, "more:style")
  imitated = d("gated", "hpt_0", "train:sft_share")
  return [
    more("accuracy: HPT above RL alone", final("hpt_0"), final("rl"), margin=0.02),
    not_less("HPT not below imitation alone", final("hpt_0"), final("sft"), margin=0.02),
    not_less("HPT not below the constant mix", final("hpt_0"), final("mix"), margin=0.02),
    more("HPT above a random gate", final("hpt_0"), final("random_gate"), margin=0.02),
    more("style on easy prompts: imitation above HPT", style("sft"), style("hpt_0"), margin=0.02),
    more("style on easy prompts: mix above HPT", style("mix"), style("hpt_0"), margin=0.02),
    more("share of imitated prompts: first above last", imitated[:, 0], imitated[:, -1]),
  ]
