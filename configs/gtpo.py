"""GTPO (Trajectory-Based Policy Optimization in Large Language Models) on the quick start's task.

  python -m experiments.train --config=configs/gtpo.py
  python -m experiments.train --config=configs/gtpo.py:debug      (under a minute)

Rewards are 0 and 1, so gamma is 0.005 (the release: 0.1 for rewards from 0 to 20).
"""

from configs import quickstart


def get_config(variant: str = ""):
  c = quickstart.get_config(variant)
  c.method, c.method_args = "gtpo", {"gamma": 0.005}
  return c
