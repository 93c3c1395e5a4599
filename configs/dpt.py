"""Decision-Pretrained Transformer (paper 27): in-context RL by supervised pretraining.

  python -m experiments.train --config=configs/dpt.py                     Gaussian bandit, 5 arms
  python -m experiments.train --config=configs/dpt.py:bernoulli           and its exact posterior
  python -m experiments.train --config=configs/dpt.py:linear              linear bandit, 10 arms
  python -m experiments.train --config=configs/dpt.py:darkroom            a grid with an unseen goal
  python -m experiments.train --config=configs/dpt.py:darkroom_permuted   and unseen buttons
  python -m experiments.train --config=configs/dpt.py:debug               under a minute

Each takes under half an hour on two cores. `:paper` (or `:linear,paper`, ...) has the sizes of the
released code, for an accelerator: all tasks fresh there too, not 100,000 seen again and again.
Another family, or other numbers: --config.data.noise=0.5 (see grpo_jax/envs/contextual/).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

# What a variant trains on: parameters of grpo_jax/envs/contextual/FAMILY.py.
DATA = {
  "": {"family": "bandit", "arms": 5, "steps": 100, "noise": 0.3},
  "bernoulli": {"family": "bandit", "arms": 5, "steps": 100, "reward": "bernoulli"},
  "linear": {"family": "linear_bandit", "arms": 10, "steps": 100, "noise": 0.3},
  "darkroom": {"family": "darkroom", "n": 7, "horizon": 50, "steps": 50},
  "darkroom_permuted": {"family": "darkroom", "n": 7, "horizon": 50, "steps": 50, "permuted": True},
}
PAPER = {  # data, learning rate, steps = epochs * tasks / batch
  "": ({"steps": 500}, 1e-4, 500_000),
  "bernoulli": ({"steps": 500}, 1e-4, 500_000),
  "linear": ({"steps": 200}, 1e-4, 1_250_000),
  "darkroom": ({"n": 10, "horizon": 100, "steps": 100}, 1e-3, 250_000),
  "darkroom_permuted": ({"n": 10, "horizon": 100, "steps": 100}, 1e-3, 250_000),
}


def base() -> Any:
  """Every field that the in-context loop reads, with its default."""
  c: Any = ConfigDict()
  c.loop = "in_context"
  c.seed = 0
  c.seeds = 3  # models trained side by side, from seed on
  c.steps = 3000
  c.method = "dpt"
  c.method_args = ConfigDict()  # keyword arguments of the method's make()
  c.data = ConfigDict()  # family, and the keyword arguments of its make()
  c.tokens = "transition"  # or split, history: rollout/in_context/tokens.py
  c.batch = 64  # contexts a step
  c.pairs = False  # two contexts of every task (T2MIR)
  c.gate_rate = 0.005  # T2MIR's tau
  c.model = ConfigDict(
    {
      "hidden": 32,
      "layers": 3,
      "heads": 4,  # DPT's arguments say so, its network has 1: far slower to learn
      "ffn": 4,
      "wide": True,  # larger weights at the start: train/programs/in_context.py: widened
    }
  )
  c.moe = ConfigDict(
    {  # of the last layer, see models/moe/layer.py; no experts: a plain one
      "experts": 0,
      "task_experts": 0,
      "top_k": 2,
      "hidden": 128,
      "noisy": True,
      "hard": False,
      "softmax": False,
      "skip": 1,
      "dense": False,  # one dense layer with as many weights as a token would meet
    }
  )
  c.optimizer = ConfigDict(
    {
      "lr": 2e-3,
      "b2": 0.99,
      "schedule": "cosine",
      "warmup": 100,
      "weight_decay": 1e-4,
      "clip_norm": 0.0,  # 0: none
    }
  )
  c.eval = ConfigDict(
    {
      "every": 500,
      "tasks": 500,  # where the family holds none out
      "steps": 0,  # pulls online; 0: as many as a context holds
      "episodes": 5,
      "greedy": False,
      "explore": False,  # online episodes begin after one of uniform actions
    }
  )
  c.checkpoint = ConfigDict({"every": 500, "keep": 2})
  c.log = ConfigDict({"every": 100, "tensorboard": True})
  c.lock()
  c.data.unlock()
  c.method_args.unlock()
  return c


def get_config(variant: str = "") -> Any:
  parts = common.check_variant(variant, (*DATA, "debug", "paper"))
  kind = next((p for p in parts if p in DATA), "")
  c = base()
  c.data = DATA[kind]
  if "darkroom" in kind:
    c.steps, c.eval.episodes, c.eval.every = 12_000, 10, 2000
  if "paper" in parts:
    data, c.optimizer.lr, c.steps = PAPER[kind]
    c.data.update(data)
    c.model.update(layers=4, heads=1, wide=False)
    c.optimizer.update(schedule="constant", warmup=0, b2=0.999)
    c.eval.every, c.checkpoint.every, c.log.every, c.eval.episodes = 25_000, 25_000, 500, 40
  if "debug" in parts:
    c.steps, c.seeds, c.batch = 4, 2, 4
    c.data.update(steps=8)
    if "darkroom" in kind:
      c.data.update(n=3, horizon=4)
    c.model.update(hidden=8, layers=1)
    c.eval.update(every=2, tasks=6, episodes=3)
    c.checkpoint.every, c.log.every = 2, 2
  return c
