"""Segment Policy Optimization (paper 16) on SmolLM2-135M: values inside an answer by sampling on.

  python -m experiments.train --config=configs/spo_segment.py              (chain)
  python -m experiments.train --config=configs/spo_segment.py:tree
  python -m experiments.train --config=configs/spo_segment.py:tree,debug   (under a minute)

The quick start's sums. chain: 8 completions a problem, cut at every second unsure token, 9
continuations a cut. tree: 4 x 4 x 4 nodes of 2 tokens a depth; a node's tokens are sampled and fed
once, whatever grows from it (tokens_fed beside tokens_fed_without_reuse in metrics.jsonl).

paper: 16
cost: not measured
result: not measured
"""

from configs import common, quickstart


def get_config(variant: str = ""):
  parts = common.check_variant(variant, ("debug", "tree"))
  c = quickstart.get_config("debug" if "debug" in parts else "")
  c.method = "spo_segment"
  c.method_args = {"form": "chain", "interval": 2, "samples": 9}
  c.batch.group = 8
  if "tree" in parts:
    c.method_args = {"form": "tree", "branching": (4, 4, 4), "segment_tokens": 2}
    c.batch.group = 1
  c.score.pack = False
  return c
