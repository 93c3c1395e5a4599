"""Single-stream Policy Optimization on the quick start's task: one completion a prompt, and a
tracker of every prompt's success instead of a group.

  python -m experiments.train --config=configs/spo_single_stream.py
  python -m experiments.train --config=configs/spo_single_stream.py:debug    (under a minute)

As many completions a step as the quick start has. 500 problems, so that each is met about nine
times: a tracker that is met once is its prior. What a tracker forgets follows the drift of the
policy, measured on the last completion of every problem.

paper: 68
cost: not measured
result: not measured here; on a token world experiments/spo_single_stream
"""

from configs import common, quickstart


def get_config(variant: str = ""):
  debug = common.check_variant(variant)
  c = quickstart.get_config(variant)
  c.method, c.method_args = "spo_single_stream", {}
  c.data.size = c.data.heldout + 500
  c.batch.prompts = 8 if debug else 128
  c.batch.group = 1
  c.score.pack = False
  return c
