"""Before anything runs: the study's statements read only what its arms will have.

Names come from the shapes of the programs (traced, not run), or from the study's MEASURES.
"""

import numpy as np

from experiments.common import study, verdict
from experiments.common.data import Data
from grpo_jax import envs
from grpo_jax.errors import UserError
from grpo_jax.names import unknown

SEEDS = 5


def check(c, module, trials: dict[str, dict]) -> None:
  """Raises UserError for a measure, an arm or a gate that is not there; trials: one of each arm."""
  run = [a for a in c.order if c.arms[a].role != "ablation" or c.part == "ablations"]
  arms = {name: names(c, module, name, trials[name]) for name in run}
  for measure in (*module.CURVES, c.score.measure):
    if not any(measure in found for found in arms.values()):
      raise unknown("CURVES", measure, list(arms[study.by_role(c, "main")[0]]))
  for setting in c.dial.order:
    runs = {name: _made_up(_at(c, module, setting, known)) for name, known in arms.items()}
    found = verdict.judge(module, Data(c, setting, runs))
    for f in found["statements"]:
      if f["role"] != "side" and f["result"] == "not run":
        raise UserError(f"{f['role']} {f['text']!r}: reads an ablation, which can only be a side")
      for r in f.get("claims", ()):
        if r["result"] == "not run":
          raise UserError(f"gates.ideal: the oracle has not what the claim {r['text']!r} reads")


def names(c, module, arm: str, trial: dict) -> dict[str, int]:
  """{measure: points} of an arm at the strong end."""
  if hasattr(module, "measure"):
    return dict.fromkeys(module.MEASURES, 3)
  from experiments.common import fused_runs

  out = fused_runs.names(study.cell(c, study.strong(c), arm, trial), module)
  return out | {f"more:{name}": 1 for name in getattr(module, "PROBED", {}).get(arm, ())}


def _at(c, module, setting: str, known: dict[str, int]) -> dict[str, int]:
  """The same at another setting, whose world has other parts and turns."""
  if hasattr(module, "measure"):
    return known
  cell = study.cell(c, setting, study.by_role(c, "main")[0], {"lr": 0.0, "knob": None})
  world = envs.get(cell.spec["world"], **cell.spec["params"])
  kept = {k: n for k, n in known.items() if not k.startswith(("turn:", "part:"))}
  kept |= {f"part:{name}": known["accuracy"] for name in world.parts}
  turns = world.turns if any(k.startswith("turn:") for k in known) else 0
  return kept | {f"turn:{i}": known["accuracy"] for i in range(turns)}


def _made_up(known: dict[str, int]) -> list[dict]:
  rng = np.random.default_rng(0)
  return [{k: rng.uniform(0.3, 0.7, max(n, 1)).tolist() for k, n in known.items()}
          for _ in range(SEEDS)]  # fmt: skip


def first_trials(c) -> dict[str, dict]:
  from experiments.common import tuning

  return {name: tuning.tries(c, name)[0] for name in c.order}
