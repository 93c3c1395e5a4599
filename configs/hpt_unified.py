"""HPT (Towards a Unified View of Large Language Model Post-Training) on the quick start's task.

  python -m experiments.train --config=configs/hpt_unified.py
  python -m experiments.train --config=configs/hpt_unified.py:debug      (under a minute)

Where none of the 16 completions of a problem is right, its answer is learned from instead. Data
without answers needs a "completion" in every row. Other gates, as a pass rate:

  --config.method_args.gate=0.25

paper: 63
cost: about that of the quick start: 8 minutes of two cores, 1.2 GB
result: not measured here; on a token world experiments/hpt_unified
"""

from configs import quickstart


def get_config(variant: str = ""):
  c = quickstart.get_config(variant)
  c.method, c.method_args = "hpt_unified", {"gate": 0.0, "sft_coef": 1.0}
  return c
