"""Bandits in words for SmolLM2-135M (EVOLvE, paper 26): `python -m experiments.evolve_bandits`.

`:contextual` has films recommended to users who come, on synthetic ratings; `:debug` and
`:contextual,debug` have every part of a run, in under a minute of two cores once the model is
loaded.

paper: 26
cost: not measured
result: experiments/evolve_bandits/verdict.json: regret 12.2 of the untrained model, 10.1 after
  imitation, 8.5 after GRPO; UCB 6.6
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> Any:
  c: Any = ConfigDict()
  c.seed = 0
  c.model = "smollm2"
  c.data = ConfigDict(
    {
      "scenario": "buttons",  # or videos, clothes, ads: grpo_jax/systems/evolve_bandits/words.py
      "arms": 5,
      "gap": 0.5,  # between the best arm's mean and the others'
      "steps": 30,
    }
  )
  c.eval = ConfigDict({"games": 24, "greedy": False})
  c.shots = ConfigDict({"skip": 2, "every": 2, "count": 5})  # of the oracle's trajectory
  c.oft = ConfigDict({"steps": 16, "games": 12, "micro": 1, "lr": 1e-4, "warmup": 2})
  c.grpo = ConfigDict({"steps": 3, "tasks": 2, "group": 8, "micro": 2, "lr": 2e-5, "warmup": 1})
  c.optimizer = ConfigDict(
    {
      "name": "adamw",
      "schedule": "linear",
      "b1": 0.9,
      "b2": 0.99,
      "eps": 1e-8,
      "weight_decay": 0.0,
      "clip_norm": 1.0,
    }
  )
  c.conditions = (
    "ucb",
    "thompson",
    "greedy",
    "uniform",
    "base_rh",
    "base_sh",
    "guided_ag",
    "few_shot_sh",
    "oft",
    "oft_grpo",
  )
  parts = common.check_variant(variant, ("contextual", "debug"))
  if "contextual" in parts:
    c.data = ConfigDict(
      {
        "scenario": "movies",
        "source": "synthetic",  # or movielens: grpo_jax/data/movielens.py
        "path": "",  # its prepared folder; empty: where tensorflow-datasets keeps it
        "seed": 0,  # of the order of the users, and of synthetic ratings
        "arms": 10,
        "rank": 20,
        "features": 3,  # numbers of a user that are written
        "steps": 20,
      }
    )
    c.eval.games = 8
    c.conditions = ("linucb", "greedy", "uniform", "base_rh", "base_sh", "guided_ag", "few_shot_sh")
  c.lock()
  if "debug" in parts:
    c.data.update(arms=3, steps=4)
    c.eval.games = 4  # as many as GRPO plays: one program
    c.shots.update(skip=1, every=1, count=2)
    c.oft.update(steps=2, games=2)
    c.grpo.update(steps=1, tasks=2, group=2)
  return c
