"""HPT (paper 63) against imitation, exploration and one after the other, on prompts that RL,
demonstrations or nobody can solve.

The dial is how many of the hard prompts the start solves: of some exploration finds the answers by
itself, of none only demonstrations teach them.
"""

import functools

import jax
import numpy as np

from experiments.common import gates, study
from experiments.common.statements import claim, side
from experiments.hpt_unified import rivals
from grpo_jax import envs
from grpo_jax.train.programs import fused

CLAIM = (
  "Imitating a demonstration where no sample succeeds and exploring elsewhere solves more prompts "
  "than imitation, exploration, imitation followed by exploration and LUFFY, and takes less of the "
  "demonstrations' style where the policy can do without."
)
NOTES = (
  "The start answers easy prompts plainly. Demonstrations of all prompts begin with a sign that "
  "the reward does not ask for, the style; 'style' is its share on easy prompts. Accuracy counts a "
  "tenth of hopeless prompts, which nobody solves. RL is HPT's own term in all arms (Dr.GRPO "
  "without a clip); 'grpo' among the ablations is GRPO itself. SFT then RL may switch at a half or "
  "at three quarters of its updates, HPT may gate at 0 or 2 of 8: both are tuned. The oracle gets "
  "four times the prompts an update; the placebo deals HPT's decisions to other prompts. LUFFY is "
  "our reading of its release."
)
UNTESTED = (
  "the unified estimator itself (its rows are tests), mathematical benchmarks, out-of-distribution "
  "suites, models of several sizes and families, SRFT, demonstrations that are wrong or of other "
  "prompts, pass@k"
)
CHANGES = ("loss", "selection")
HISTORY = ()
CURVES = ("accuracy", "part:hard", "train:sft_share", "more:style")
UPDATES = 240
ARMS = ("sft_rl", "sft", "rl", "luffy", "hpt", "shuffled", "fourfold")
PROBED = dict.fromkeys(ARMS, ("style",))
SURPASSES = "HPT consistently surpasses strong baselines"


def get_config(variant: str = ""):
  hpt = lambda role, knob=None, plan=None, **args: study.arm(
    role, "hpt_unified", args, knob=knob, plan=plan
  )
  shown = lambda share: {"params": {"shown": share}}
  return study.config(
    "hpt_unified",
    variant,
    world="gated",
    params={"hard": 0.5, "hopeless": 0.1},
    plan={
      "updates": UPDATES,
      "eval_every": 20,
      "prompts": 16,
      "group": 8,
      "heldout": 256,
      "eval_temperature": 1.0,
      "warm_steps": 600,
      "warm_until": 0.42,
    },
    dial=("hard prompts that the start solves", {"some": shown(0.1), "none": shown(0.0)}),
    arms={
      "sft_rl": hpt("baseline", ("switch", (UPDATES // 2, UPDATES * 3 // 4))),
      "sft": hpt("baseline", gate=1.0),
      "rl": hpt("baseline", gate=-1.0),
      "luffy": hpt("baseline"),  # by `alter`
      "hpt": hpt("main", ("gate", (0.0, 0.25))),
      "shuffled": hpt("placebo", shuffle=True),
      "fourfold": hpt("oracle", plan={"prompts": 64}),
      "mix": hpt("ablation", table=((0.5, 0.5),)),
      "grpo": study.arm("ablation", "grpo"),
    },
    at="final",
    lrs=(1e-3, 3e-3, 1e-2),
    ranges={"more:style": 1.0},
    scaled=("switch",),
  )


def alter(cell, method):
  return rivals.luffy(_world(cell).answer) if cell.arm == "luffy" else method


def _world(cell, **params):
  return envs.get(cell.spec["world"], **cell.spec["params"] | params)


def probe(cell):
  """The share of the demonstrations' style on easy prompts, at the end."""
  if cell.arm not in PROBED:
    return None
  world = _world(cell, hard=0.0, hopeless=0.0, shown=None)
  return lambda state, start, seed: {"style": float(_styled(world)(state.params))}


@functools.cache
def _styled(world):
  sizes = fused.Sizes(heldout=256, eval_temperature=1.0, split="id")
  evaluate = fused.make_evaluate(world, fused.tiny_config(world.vocab), sizes)
  return jax.jit(lambda params: evaluate(params).parts[world.parts.index("styled")])


def statements(d):
  style = lambda arm: d.final(arm, "more:style")
  alone = np.maximum(d.final("sft"), d.final("rl"))
  imitated = d.start("hpt", "train:sft_share") - d.final("hpt", "train:sft_share")
  return [
    gates.ideal(d),
    gates.headroom(d),
    gates.learned(d),
    gates.disease(
      "hard prompts, half of all, that the start solves", d.start("rl", "part:hard"), "<=", 0.02
    ),
    gates.acts("HPT imitates less at the end than at the start", imitated, ">=", 0.1),
    gates.budgets(d, "rollouts"),
    claim("HPT above SFT then RL", d.final("hpt"), ">", d.final("sft_rl"), quote=SURPASSES),
    claim("HPT above LUFFY", d.final("hpt"), ">", d.final("luffy"), quote=SURPASSES),
    claim(
      "HPT above SFT alone and RL alone, whichever is higher",
      d.final("hpt"),
      ">",
      alone,
      quote=SURPASSES,
    ),
    claim(
      "style on easy prompts: SFT then RL above HPT",
      style("sft_rl"),
      ">",
      style("hpt"),
      quote="stable exploration without sacrificing learned reasoning patterns",
    ),
    side("HPT above its decisions dealt at random", d.final("hpt"), ">", d.final("shuffled")),
    side("over training: HPT above SFT then RL", d.area("hpt"), ">", d.area("sft_rl")),
    side("hard prompts: HPT above SFT", d.final("hpt", "part:hard"), ">",
         d.final("sft", "part:hard")),
    side("style on easy prompts: SFT above HPT", style("sft"), ">", style("hpt")),
    side("style on easy prompts: LUFFY above HPT", style("luffy"), ">", style("hpt")),
    side("HPT above a constant mix of both", d.final("hpt"), ">", d.final("mix")),
    side("RL alone not below GRPO", d.final("rl"), ">=", d.final("grpo")),
  ]  # fmt: skip
