"""D3S (paper 05) against GRPO: what training on a few rollouts and tokens gains, at equal updates
and at equal trained tokens.

The dial is how unlike the prompts are: if all are as long, most groups hold both outcomes; the more
lengths there are, the more prompts are always or never solved, and the more tokens are sure.
"""

import numpy as np

from experiments.common import gates, study
from experiments.common.statements import claim, reading, side

CLAIM = (
  "Training on the rollouts of the largest variance of advantages and in them on the tokens of the "
  "largest |advantage| x entropy, with quotas that relax, gives larger gradients, learns faster "
  "early and ends higher than training on all of them, and needs fewer trained tokens."
)
NOTES = (
  "No released code: the method is reconstructed, quotas and aggregation are assumed (25% to 75% "
  "of rollouts; of their tokens 10% to 30%, or 20% to 60%, which is tuned). Two updates a batch. "
  "Gradients are per trained token, before the clip at norm 1; Adam makes their size almost "
  "immaterial. The oracle has four times as many rollouts to choose from, sampled for free, and "
  "trains on all tokens of those it chooses, as many as GRPO; the placebo on random ones, as many "
  "as D3S. GSPO's clip is a hundred times the paper's, whose answers are as much longer. "
  "'Per trained token' compares D3S at its end with GRPO when it has trained on as many tokens."
)
UNTESTED = (
  "mathematical reasoning, Qwen2.5 and Llama3.1, answers of thousands of tokens, generalization to "
  "other benchmarks, pass@8, wall-clock time; that less sampling is needed (all arms sample alike)"
)
CHANGES = ("selection", "weight")
HISTORY = ()
CURVES = ("accuracy", "train:grad_norm", "train:entropy", "train:trained_tokens", "train:idle")
UPDATES, EVERY, MINI = 120, 10, 2


def get_config(variant: str = ""):
  d3s = lambda role, knob=None, plan=None, **args: study.arm(
    role, "d3s", {"total_steps": UPDATES} | args, knob=knob, plan=plan
  )
  grpo = {"aggregate": "token_mean", "ddof": 0, "eps_std": 1e-6}
  sequence_clip = {"eps_low": 0.03, "eps_high": 0.04}
  return study.config(
    "d3s",
    variant,
    world="sequence",
    params={"task": "reverse", "items": 10},
    plan={
      "updates": UPDATES,
      "eval_every": EVERY,
      "prompts": 16,
      "group": 8,
      "mini": MINI,
      "heldout": 256,
      "eval_temperature": 1.0,
      "warm_steps": 800,
      "warm_until": 0.3,
    },
    dial=("prompts", {"alike": {"params": {"shortest": 10}}, "mixed": {"params": {"shortest": 2}}}),
    arms={
      "grpo": study.arm("baseline", "grpo", grpo),
      "d3s": d3s("main", ("tokens", ((10.0, 30.0), (20.0, 60.0)))),
      "random": d3s("placebo", pick="random"),
      "chosen": d3s("oracle", None, {"prompts": 64}, samples=(0.25, 0.25), tokens=(100.0, 100.0)),
      "gspo": study.arm("ablation", "gspo", sequence_clip),
      "d3s_gspo": d3s("ablation", ratio="sequence", **sequence_clip),
      "fixed": d3s("ablation", samples=(0.5, 0.5), tokens=(20.0, 20.0)),
      "rollouts": d3s("ablation", tokens=(100.0, 100.0)),
    },
    lrs=(1e-4, 2e-4, 4e-4),
    ranges={"train:grad_norm": 1.0, "train:entropy": 2.5},
    scaled=("total_steps",),
  )


def trained(d, arm: str) -> np.ndarray:
  """Tokens that were trained on until each evaluation, f64[seeds, points]."""
  chooses = d.has(arm, "train:trained_tokens")
  each = d(arm, "train:trained_tokens") * MINI if chooses else d(arm, "train:tokens")
  return np.pad(np.cumsum(each * EVERY, axis=1), ((0, 0), (1, 0)))


def when(d, arm: str, had: np.ndarray, count: np.ndarray):
  """Accuracy of the arm at the moment when `had`, f64[seeds, points], has reached count[seeds]."""
  rows = zip(count, had, d(arm, "accuracy"), strict=True)
  return reading([np.interp(*row) for row in rows], ("accuracy", "final"))


def statements(d):
  gradient = lambda arm: d.early(arm, "train:grad_norm")
  count, grpo = trained(d, "d3s")[:, -1], trained(d, "grpo")
  share = d.total("d3s", "train:trained_tokens") * MINI / d.total("d3s", "train:tokens")
  telling = grpo * (1 - d.area("grpo", "train:idle"))[:, None]
  return [
    gates.ideal(d),
    gates.headroom(d),
    gates.learned(d),
    gates.disease(
      "rollouts of GRPO without advantage", d.area("grpo", "train:idle"), ">=", 0.3
    ),
    gates.acts("D3S trains on at most a third of the tokens", share, "<=", 1 / 3),
    gates.budgets(d, "rollouts"),
    claim(
      "at the end, equal updates: D3S above GRPO",
      d.final("d3s"),
      ">",
      d.final("grpo"),
      quote="achieves state-of-the-art performance and generalization",
    ),
    claim(
      "in the first half, equal updates: D3S above GRPO",
      d.early("d3s"),
      ">",
      d.early("grpo"),
      quote="starts with aggressive down-sampling to accelerate early learning",
    ),
    claim(
      "at equal trained tokens: D3S above GRPO",
      d.final("d3s"),
      ">",
      when(d, "grpo", grpo, count),
      quote="while requiring fewer samples and tokens",
    ),
    claim(
      "norm of the gradient in the first half: D3S above GRPO",
      gradient("d3s"),
      ">",
      gradient("grpo"),
      quote="yielding higher policy gradients",
    ),
    side("D3S above random rollouts and tokens", d.area("d3s"), ">", d.area("random")),
    side("its gradient above that of random ones", gradient("d3s"), ">", gradient("random")),
    side("random ones above GRPO at equal trained tokens", d.final("random"), ">",
         when(d, "grpo", grpo, count)),
    side("D3S above GRPO when that has had as many tokens with an advantage", d.final("d3s"), ">",
         when(d, "grpo", telling, count)),
    side("entropy at the end: D3S above GRPO", d.final("d3s", "train:entropy"), ">",
         d.final("grpo", "train:entropy")),
    side("at the end: D3S on GSPO above GSPO", d.final("d3s_gspo"), ">", d.final("gspo")),
    side("at the end: relaxed quotas above fixed ones", d.final("d3s"), ">", d.final("fixed")),
    side("both levels above rollouts alone", d.area("d3s"), ">", d.area("rollouts")),
  ]  # fmt: skip
