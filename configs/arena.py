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
  c.lrs = (1e-4, 3e-4, 1e-3)
  c.at_once = 2  # runs in one program: the number of CPU devices
  c.baseline = "grpo"
  c.plan = ConfigDict(
    dict(
      updates=100,
      eval_every=20,
      prompts=32,
      group=8,
      heldout=256,
      eval_temperature=1.0,
      warm_steps=600,
      warm_until=0.3,
    )
  )
  c.worlds = ConfigDict(
    dict(
      reverse=dict(world="sequence", params=dict(task="reverse")),
      gated=dict(world="gated"),
      guess=dict(world="hidden_number", skip=("rank_grpo",)),
      rank=dict(world="ranked_list", measure="reward", skip=("igpo",)),
    )
  )
  only_turns = ("reverse", "gated")
  twice = dict(mini=2)  # a second update on the same samples: else no ratio and no clip acts
  c.arms = ConfigDict(
    dict(
      reinforce=dict(method="reinforce"),
      rloo=dict(method="rloo"),
      grpo=dict(method="grpo"),
      dr_grpo=dict(method="dr_grpo"),
      # its two clips and token mean: answers here end by themselves, and samples stay equal
      dapo=dict(method="dapo", args=dict(max_tokens=1000, overlong_cache=1, resample=0), plan=twice),
      grpo_x2=dict(method="grpo", plan=twice),
      gspo=dict(method="gspo", plan=twice),
      cispo=dict(method="cispo", plan=twice),
      ppo=dict(method="ppo", plan=twice),
      hpt_unified=dict(method="hpt_unified"),
      d3s=dict(method="d3s", args=dict(total_steps=100)),
      gtpo=dict(method="gtpo"),
      kimi_k1_5=dict(method="kimi_k1_5", plan=twice),
      spo_single_stream=dict(
        method="spo_single_stream", args=dict(rho=0.875), plan=dict(prompts=256, group=1)
      ),
      rank_grpo=dict(method="rank_grpo", args=dict(beta_kl=0.0), skip=only_turns),
      igpo=dict(method="igpo", args=dict(gain="given", beta_kl=0.0), skip=only_turns),
    )
  )
  if "debug" in parts:
    c.seeds, c.tune_seeds, c.lrs = 2, 1, (1e-3,)
    c.plan.update(updates=2, eval_every=1, prompts=4, heldout=16, warm_steps=10)
    c.worlds = ConfigDict(dict(reverse=c.worlds.reverse.to_dict()))
    c.arms = ConfigDict({k: c.arms[k].to_dict() for k in ("grpo", "rloo")})
  return c
