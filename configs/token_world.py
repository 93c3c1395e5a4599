"""Any method on a token world, several seeds in one compiled program (loop "fused").

  python -m experiments.train --config=configs/token_world.py          (GRPO, hidden_number)
  python -m experiments.train --config=configs/token_world.py:debug    (seconds)
  python -m experiments.train --config=configs/token_world.py --config.world=sequence \
      --config.method=gspo --config.plan.updates=400

`world` is a file of grpo_jax/envs/worlds, `plan` holds fields of train/programs/fused.py: Sizes.

paper: of any method
paper: any
cost: not measured
result: not measured
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> Any:
  parts = common.check_variant(variant)
  c: Any = ConfigDict()
  c.loop = "fused"
  c.seed = 0
  c.seeds = 4
  c.world = "hidden_number"
  c.world_args = ConfigDict()  # arguments of the world's make()
  c.method = "grpo"
  c.method_args = ConfigDict()
  c.model = ConfigDict({"hidden": 64, "layers": 2, "heads": 4})
  c.plan = ConfigDict(
    {
      "updates": 200,
      "prompts": 16,
      "group": 8,
      "problems": 2048,
      "lr": 5e-4,
      "clip_norm": 1.0,
      "epochs": 1,
      "mini": 1,
      "micro": 1,
      "eval_every": 20,
      "heldout": 128,
      "eval_temperature": 1.0,
      "warm_steps": 400,
      "warm_until": 0.2,
      "warm_lr": 3e-3,
      "split": "id",
    }
  )
  if "debug" in parts:
    c.seeds, c.model.hidden, c.model.layers = 2, 16, 1
    c.plan.update(updates=4, eval_every=2, heldout=16, warm_steps=10, problems=64)
  return c
