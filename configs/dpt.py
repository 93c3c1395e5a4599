"""Decision-Pretrained Transformer (paper 27): in-context RL by supervised pretraining.

  python -m experiments.train --config=configs/dpt.py                     Gaussian bandit, 5 arms
  python -m experiments.train --config=configs/dpt.py:bernoulli           and its exact posterior
  python -m experiments.train --config=configs/dpt.py:linear              linear bandit, 10 arms
  python -m experiments.train --config=configs/dpt.py:darkroom            a grid with an unseen goal
  python -m experiments.train --config=configs/dpt.py:darkroom_permuted   and unseen buttons
  python -m experiments.train --config=configs/dpt.py:debug               under a minute

`:paper` (or `:linear,paper`, ...) has the sizes of the
released code, for an accelerator: all tasks fresh there too, not 100,000 seen again and again.
Another family, or other numbers: --config.data.noise=0.5 (see grpo_jax/envs/contextual/).

paper: 27
cost: 8 minutes of two cores for the Gaussian bandit's 3 seeds, 9 for :bernoulli, 38 for :linear;
  memory not measured
result: experiments/dpt/verdict.json: regret 6.6 after 100 pulls, where Thompson sampling has 5.8
  and UCB 6.9; :linear 5.2, LinUCB 3.1
"""

from typing import Any

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


def get_config(variant: str = "") -> Any:
  parts = common.check_variant(variant, (*DATA, "debug", "paper"))
  kind = next((p for p in parts if p in DATA), "")
  c = common.in_context()
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
