"""Kimi k1.5's policy optimization on the quick start's task.

  python -m experiments.train --config=configs/kimi_k1_5.py
  python -m experiments.train --config=configs/kimi_k1_5.py:debug      (under a minute)

Two updates a batch, the second with the pull to the policy that sampled it; Adam starts anew with
every batch. The length reward is off: answers here are as long as the number is.

paper: 25
cost: about 10 minutes of two cores, 1.2 GB: the quick start with two passes of update a step
result: not measured here; on a token world experiments/kimi_k1_5
"""

from configs import quickstart


def get_config(variant: str = ""):
  c = quickstart.get_config(variant)
  c.method, c.method_args = "kimi_k1_5", {"tau": 0.02, "length_weight": 0.0}
  c.batch.mini = 2
  return c
