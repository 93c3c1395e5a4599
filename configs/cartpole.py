"""PPO on gymnax environments, several seeds in one compiled program (loop "control").

  python -m experiments.train --config=configs/cartpole.py               (CartPole-v1, 10 seeds)
  python -m experiments.train --config=configs/cartpole.py:debug         (seconds)
  python -m experiments.train --config=configs/cartpole.py --config.env=Acrobot-v1

`env` is a registered name of gymnax; `plan` holds fields of train/programs/control.py: Sizes. PPO
as usual for CartPole: two tanh layers of 64, 512 steps an update, 4 epochs, gamma 0.99, lambda
0.95, clip 0.2, entropy 0.01, annealed rate. Mini-batches are whole rows, so there are 16 short ones
and 2 mini-batches, at twice the learning rate that 4 environments and 4 mini-batches usually get.

paper: none of the list (PPO, arXiv:1707.06347)
cost: 10 seconds of two cores for the 10 seeds, 6 of them to compile
result: benchmarks/results/control_cpu.json: a return of 500 in all of 10 seeds, 475 reached within
  129,000 to 245,000 steps
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> Any:
  parts = common.check_variant(variant)
  c: Any = ConfigDict()
  c.loop = "control"
  c.seed = 0
  c.seeds = 10
  c.env = "CartPole-v1"
  c.env_args = ConfigDict()  # fields of gymnax's EnvParams, or arguments of its constructor
  c.model = ConfigDict({"hidden": (64, 64), "activation": "tanh"})
  c.method = "ppo"
  c.method_args = ConfigDict(
    {
      "rewards": "unit",
      "bootstrap": True,
      "gamma": 0.99,
      "lam": 0.95,
      "value_coef": 0.25,  # of the squared error: 0.5 of half of it
      "beta_entropy": 0.01,
    }
  )
  c.plan = ConfigDict(
    {
      "updates": 976,  # of 512 steps: 5e5
      "envs": 16,
      "steps": 32,
      "epochs": 4,
      "mini": 2,
      "lr": 5e-4,
      "anneal": True,
      "clip_norm": 0.5,
      "eval_every": 122,
      "eval_episodes": 16,
    }
  )
  if "debug" in parts:
    c.seeds = 2
    c.plan.update(updates=4, eval_every=2, eval_episodes=2)
  return c
