"""D3S (paper 05) on countdown: which rollouts and tokens are trained, at equal sampling."""

from experiments.common import first_protocol as study
from experiments.common.first_protocol import more, not_less

CLAIM = (
  "Training on the rollouts of the largest variance of advantages and in them on the tokens of the "
  "largest |advantage| x entropy learns faster than GRPO on all of them and than random subsets of "
  "the same size; relaxing the quotas over training ends no worse than keeping them."
)
NOTES = (
  "No released code: the method is reconstructed, quotas and aggregation are assumed (25% to 75% "
  "of rollouts, 10% to 30% of their tokens). Answers have 6 tokens, so 10% of the tokens are very "
  "few. 'fixed' has the mean of the scheduled quotas; 'all' divides by all tokens instead of the "
  "kept ones, which Adam makes almost immaterial. GRPO is token-mean."
)
CURVES = (
  ("countdown", "accuracy"),
  ("countdown", "part:valid"),
  ("countdown", "train:trained_tokens"),
  ("countdown", "train:entropy"),
)
UPDATES = 320


def get_config(variant: str = ""):
  d3s = lambda **args: {"method": "d3s", "args": {"total_steps": UPDATES} | args}
  grpo = {"aggregate": "token_mean", "ddof": 0, "eps_std": 1e-6}
  return study.config(
    "d3s",
    variant,
    plan={
      "updates": UPDATES,
      "eval_every": 40,
      "prompts": 16,
      "group": 8,
      "heldout": 512,
      "eval_temperature": 1.0,
      "warm_steps": 600,
      "warm_until": 0.15,
    },
    worlds={"countdown": {"world": "countdown"}},
    arms={
      "grpo": {"method": "grpo", "args": grpo},
      "scheduled": d3s(),
      "fixed": d3s(samples=(0.5, 0.5), tokens=(20.0, 20.0)),
      "random": d3s(pick="random"),
      "all": d3s(divide_by="all"),
    },
    lr=5e-4,
  )


def statements(d):
  curve = lambda arm: d("countdown", arm, "accuracy")
  early = lambda arm: curve(arm)[:, 1 : 1 + curve(arm).shape[1] // 2].mean(axis=1)
  final = lambda arm: d.final("countdown", arm)
  return [
    more(
      "accuracy in the first half: D3S above random subsets of its sizes",
      early("scheduled"),
      early("random"),
      margin=0.01,
    ),
    more("in the first half: D3S above GRPO", early("scheduled"), early("grpo"), margin=0.01),
    not_less(
      "at the end: scheduled quotas not below fixed ones",
      final("scheduled"),
      final("fixed"),
      margin=0.01,
    ),
  ]
