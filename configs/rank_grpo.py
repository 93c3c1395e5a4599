"""Rank-GRPO (ConvRec-R1, paper 58) on SmolLM2-135M: lists whose entries are the ranks.

  python -m experiments.train --config=configs/rank_grpo.py
  python -m experiments.train --config=configs/rank_grpo.py:debug      (under a minute)

Three or four words are to be sorted (reasoning-gym); the k-th word of the answer is rank k and is
worth 1 in its place. `sample.cut` makes a unit of what stands between commas, the reward part
`lines` judges each. Hyperparameters are the paper's but for the rate, the quick start's.

paper: 58
cost: not measured
result: not measured
"""

from configs import quickstart

RANKS = 4


def get_config(variant: str = ""):
  c = quickstart.get_config(variant)
  c.method = "rank_grpo"
  c.method_args = {"ranks": RANKS, "reward": "hit"}
  c.data.mix = ({"name": "word_sorting", "params": {"min_words": 3, "max_words": RANKS}},)
  c.data.prompt = {
    "style": "few_shot",
    "shots": 8,
    "question_regex": r"sort these words (in \w+ order.*)$",
    "template": "{question} -> {answer}\n",
  }
  c.reward.parts = (
    {
      "name": "lines",
      "units": RANKS,
      "args": {"separator": ", ", "ordered": True},
      "verdict": False,
    },
    {"name": "exact", "weight": 0.0, "verdict": True},
  )
  c.sample.units, c.sample.cut = RANKS + 1, ", "
  c.sample.max_new_tokens = 32
  c.score.pack = False
  return c
