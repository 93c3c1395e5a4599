"""The arena: policy-optimization methods on token worlds, every run one compiled program.

  python -m experiments.compare --config=configs/arena.py                  (all worlds)
  python -m experiments.compare --config=configs/arena.py:reverse,gated    (these two of them)
  python -m experiments.compare --config=configs/arena.py:debug            (under a minute)

An arm is {method, args, plan, skip}; a world {world, params, plan, skip}; `plan` holds fields of
train/programs/fused.py: Sizes, those of the arm over those of the world over the common ones.
Learning rates are chosen for each arm and world from `lrs` on `tune_seeds` seeds that are not
reported. Problems are split by number and not by prompt, as in the published results (one of the
worlds has a single prompt): read its accuracies as those on training problems.

paper: of every method that samples
cost: 65 minutes of two cores beside other work for all four worlds, 928 runs; about 1 GB
result: docs/arena.md
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  c = ConfigDict()
  c.seeds = 10
  c.tune_seeds = 2
  c.lrs = (1e-4, 3e-4, 1e-3)
  c.at_once = 2  # runs in one program: the number of CPU devices
  c.baseline = "grpo"
  c.plan = ConfigDict(
    {
      "updates": 100,
      "eval_every": 20,
      "prompts": 32,
      "group": 8,
      "heldout": 256,
      "split": "id",
      "eval_temperature": 1.0,
      "warm_steps": 600,
      "warm_until": 0.3,
    }
  )
  worlds = {
    "reverse": {"world": "sequence", "params": {"task": "reverse"}},
    "gated": {"world": "gated"},
    "guess": {"world": "hidden_number", "skip": ("rank_grpo",)},
    "rank": {
      "world": "ranked_list",
      "params": {"items": 4},
      "measure": "reward",
      "skip": ("igpo",),
    },
  }
  flat = ("reverse", "gated")  # one turn, one unit
  twice = {"mini": 2}  # the second update is off-policy by the first: else no clip acts
  arms = {
    "reinforce": {"method": "reinforce"},
    "rloo": {"method": "rloo"},
    "grpo": {"method": "grpo"},
    "dr_grpo": {"method": "dr_grpo"},
    # its two clips and token mean: answers here end by themselves, and samples stay equal
    "dapo": {
      "method": "dapo",
      "args": {"max_tokens": 1000, "overlong_cache": 1, "resample": 0},
      "plan": twice,
    },
    "grpo_x2": {"method": "grpo", "plan": twice},
    "gspo": {"method": "gspo", "plan": twice},
    "cispo": {"method": "cispo", "plan": twice},
    "ppo": {"method": "ppo", "plan": twice},
    "hpt_unified": {"method": "hpt_unified"},
    "d3s": {"method": "d3s", "args": {"total_steps": 100}},
    "gtpo": {"method": "gtpo"},
    "kimi_k1_5": {"method": "kimi_k1_5", "plan": twice},
    "spo_single_stream": {
      "method": "spo_single_stream",
      "args": {"rho": 0.875},
      "plan": {"prompts": 256, "group": 1},
    },
    "rank_grpo": {"method": "rank_grpo", "args": {"beta_kl": 0.0}, "skip": flat},
    "igpo": {"method": "igpo", "args": {"gain": "given", "beta_kl": 0.0}, "skip": flat},
  }
  parts = common.check_variant(variant, (*worlds, "debug"))
  worlds = {name: world for name, world in worlds.items() if name in parts} or worlds
  if "debug" in parts:
    c.seeds, c.tune_seeds, c.lrs = 2, 1, (1e-3,)
    c.plan.update(updates=2, eval_every=1, prompts=4, heldout=16, warm_steps=10)
    worlds = {"reverse": worlds["reverse"]}
    arms = {name: arms[name] for name in ("grpo", "rloo")}
  c.worlds, c.arms = ConfigDict(worlds), ConfigDict(arms)
  return c
