"""The arena: policy-optimization methods on token worlds, every run one compiled program.

  python -m experiments.compare --config=configs/arena.py            (two hours on two cores)
  python -m experiments.compare --config=configs/arena.py:debug      (under a minute)

An arm is {method, args, plan, skip}; a world {world, params, plan, skip}; `plan` holds fields of
train/fused.py: Plan, those of the arm over those of the world over the common ones. Learning rates
are chosen for each arm and world from `lrs` on `tune_seeds` seeds that are not reported.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  parts = common.check_variant(variant, ("debug",))
  c = ConfigDict()
  c.seeds = 10
  c.tune_seeds = 2
  c.lrs = (3e-4, 1e-3, 3e-3)
  c.at_once = 2  # runs in one program: the number of CPU devices
  c.baseline = "grpo"
  c.plan = ConfigDict(
    dict(
      updates=100, eval_every=20, prompts=32, group=8, heldout=256, warm_steps=400, warm_until=0.3
    )
  )
  c.worlds = ConfigDict(
    dict(
      addition=dict(world="modular_addition", params=dict(modulus=12)),
    )
  )
  c.arms = ConfigDict(
    dict(
      reinforce=dict(method="reinforce"),
      rloo=dict(method="rloo"),
      grpo=dict(method="grpo"),
      dr_grpo=dict(method="dr_grpo"),
      dapo=dict(method="dapo", args=dict(overlong_cache=2)),
      gspo=dict(method="gspo", plan=dict(mini=2)),
      cispo=dict(method="cispo", plan=dict(mini=2)),
      ppo=dict(method="ppo", plan=dict(mini=2)),
    )
  )
  if "debug" in parts:
    c.seeds, c.tune_seeds, c.lrs = 2, 1, (1e-3,)
    c.plan.update(updates=2, eval_every=1, prompts=4, heldout=16, warm_steps=10)
    c.worlds = ConfigDict(dict(addition=c.worlds.addition.to_dict()))
    c.arms = ConfigDict({k: c.arms[k].to_dict() for k in ("grpo", "rloo")})
  return c
