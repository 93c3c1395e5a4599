"""Supervised fine-tuning on solved sums: the quick start's task, without sampling or rewards.

  python -m experiments.train --config=configs/sft.py
  python -m experiments.train --config=configs/sft.py:debug             (under a minute)

SFT and then GRPO: write the model out, and begin the other run from it.

  python -m experiments.train --config=configs/sft.py --config.export=runs/sft/model
  python -m experiments.train --config=configs/quickstart.py --config.model=runs/sft/model \
    --workdir=runs/sft_grpo

Own demonstrations, JSON lines of {"prompt", "completion", "answer"} ("answer" only if held-out
accuracy is wanted):

  --config.data.source=jsonl --config.data.path=FILE

paper: none
cost: not measured
result: not measured
"""

from configs import common, quickstart


def get_config(variant: str = ""):
  c = quickstart.get_config(variant)
  c.loop = "offline"
  c.method, c.method_args = "sft", {}
  c.batch.group = 1
  c.score.pack = False
  c.batch.prompts = 4 if common.check_variant(variant) else 32
  c.optimizer.lr = 2e-5
  return c
