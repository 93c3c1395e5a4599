"""The quick start's task with each of the base methods that sample.

  python -m experiments.train --config=configs/base_methods.py:ppo
  python -m experiments.train --config=configs/base_methods.py:ppo,debug    (under a minute)

Without a name it is grpo. All but ppo make one update a batch, as the quick start does: then the
ratio is 1 and no clip acts. Add --config.batch.mini=2 to see what the clips do.

paper: those named in grpo_jax/methods/base
cost: about that of the quick start each (8 minutes of two cores, 1.2 GB), ppo about twice
result: not measured but for grpo, which is the quick start
"""

from configs import common, quickstart

ARGS = {
  "reinforce": {},
  "rloo": {},
  "grpo": {},
  "dr_grpo": {},  # max_tokens is the budget of the run
  "dapo": {"max_tokens": 8, "overlong_cache": 2, "resample": 2},
  "gspo": {},
  "cispo": {},
  "ppo": {"lam": 1.0},  # one reward at the end of at most 8 tokens
}


def get_config(variant: str = ""):
  parts = common.check_variant(variant, (*ARGS, "debug"))
  name = next((part for part in parts if part != "debug"), "grpo")
  c = quickstart.get_config("debug" if "debug" in parts else "")
  c.method = name
  c.method_args = ARGS[name]
  if name == "ppo":
    c.batch.epochs = 2
    c.batch.mini = 2
    c.score.pack = False  # values are read along a row
  return c
