"""DPO on pairs of a right and a wrong sum: the quick start's task, without sampling or rewards.

  python -m experiments.train --config=configs/dpo.py
  python -m experiments.train --config=configs/dpo.py:debug             (under a minute)

The wrong sum is a number near the right one. Own pairs, JSON lines of {"prompt", "chosen",
"rejected", "answer"} ("answer" only if held-out accuracy is wanted):

  --config.data.source=jsonl --config.data.path=FILE

paper: none of the list (DPO, arXiv:2305.18290)
cost: not measured
result: not measured
"""

from configs import common, quickstart


def get_config(variant: str = ""):
  c = quickstart.get_config(variant)
  c.loop = "offline"
  c.method, c.method_args = "dpo", {"beta": 0.1}
  c.batch.group = 2
  c.batch.prompts = 4 if common.check_variant(variant) else 32
  return c
