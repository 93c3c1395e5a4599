"""GTPO (Trajectory-Based Policy Optimization in Large Language Models) on the quick start's task.

  python -m experiments.train --config=configs/gtpo.py
  python -m experiments.train --config=configs/gtpo.py:debug      (under a minute)

Rewards are 0 and 1, so gamma is 0.005 (the release: 0.1 for rewards from 0 to 20).

paper: 75
cost: about that of the quick start: 8 minutes of two cores, 1.2 GB
result: not measured here; on a token world experiments/gtpo
"""

from configs import quickstart


def get_config(variant: str = ""):
  c = quickstart.get_config(variant)
  c.method, c.method_args = "gtpo", {"gamma": 0.005}
  return c
