"""D3S (Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework) on the quick start's
task.

  python -m experiments.train --config=configs/d3s.py
  python -m experiments.train --config=configs/d3s.py:debug      (under a minute)

The schedule ends with the run: with other steps, say so twice.

  --config.steps=100 --config.method_args.total_steps=100

paper: 05
cost: about 6 minutes of two cores, 1.2 GB, by the quick start's steps
result: not measured here; on a token world experiments/d3s
"""

from configs import quickstart


def get_config(variant: str = ""):
  c = quickstart.get_config(variant)
  c.method, c.method_args = "d3s", {"total_steps": 36}
  return c
