"""How a study is written down, and the runs that it asks for.

`experiments/SLUG/claim.py` has
  CLAIM       the abstract's sentence, in the world's terms
  NOTES       what is ours, what was left out
  UNTESTED    what of the abstract was not tested
  CHANGES     of what the paper changes: some of `CHANGES` below
  HISTORY     at most two {"change", "seen"}: what was changed after a first look, numbers seen then
  CURVES      measures to be shown
  get_config  made by `config` below
  statements  d -> gates, claims and sides of one setting of the dial (statements.py, gates.py)
and where it needs them
  probe       (cell) -> None or (state, start params, seed) -> {name: number} after a run,
              PROBED {arm: (name, ...)}
  warm_world  (world) -> the world whose solutions the warm start imitates
  alter       (cell, method) -> method: what an arm changes of its method, as a placebo does
  measure     (world, arm, plan, seed) -> {name: number or list}, where the fused loop is not the
              one; MEASURES the names. world {"world", "params"}, arm {"name", "method", "args",
              "lr"}, plan: plain dicts

A measure is "accuracy", "reward" or "length" on held-out problems, "part:NAME" and "turn:K" there,
"train:NAME" (a metric, as means between two evaluations), "more:NAME" (of `probe`), or a total:
"updates", "rollouts", "sampled" (tokens).
"""

import dataclasses
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from configs.common import check_variant
from experiments.common import tuning
from grpo_jax.errors import UserError
from grpo_jax.names import unknown

ROLES = ("main", "baseline", "oracle", "placebo", "ablation")
CHANGES = ("reward", "advantage", "weight", "loss", "selection", "rollout", "architecture", "other")
VARIANTS = ("debug", "long", "ablations")
LONG = 4  # times the budget of the longer attempt
DEBUG = {"updates": 2, "eval_every": 1, "prompts": 4, "heldout": 16, "warm_steps": 10}
TUNE = 1_000_000  # tuning seeds begin here


def arm(
  role: str,
  method: str = "",
  args: dict | None = None,
  *,
  knob: tuple | None = None,
  plan: dict | None = None,
  lrs: tuple[float, ...] = (),
  fixed: str = "",
) -> dict:
  """knob: (name of an argument or "plan.FIELD", values), tuned beside the learning rate. lrs: its
  own rates. fixed: why there is nothing to tune, one sentence; such an arm is not tuned."""
  if role not in ROLES:
    raise unknown("role", role, ROLES)
  out: dict[str, Any] = {"role": role, "method": method, "args": args or {}, "plan": plan or {}}
  return out | {"knob": knob or (), "lrs": lrs, "fixed": fixed}


def config(
  slug: str,
  variant: str,
  *,
  plan: dict,
  dial: tuple[str, dict],
  arms: dict[str, dict],
  world: str = "",
  params: dict | None = None,
  score: str = "accuracy",
  at: str = "area",
  less: bool = False,
  ranges: dict[str, float] | None = None,
  best: float | None = None,
  lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3),
  seeds: int = 0,
  exact: bool = False,
  length: str = "updates",
  scaled: tuple[str, ...] = (),
  debug: dict | None = None,
) -> ConfigDict:
  """The config of a study.

  dial: (name, {setting: {"world", "params", "plan", "args"}}) from "absent" to "strong"; what a
  setting says goes over `world`, `params` and `plan`, and `args` into every arm's. score, at: what
  tuning maximizes ("area" over training, "final" or "early", the first half), and of which the
  effect is shown; less: it minimizes. ranges: of measures that do not lie in [0, 1]. best: the
  greatest possible score, where there is no oracle. seeds: 0 is by rule (tuning.py); exact: runs
  are exact and take seconds. length: the plan's field that says how long a run is. scaled: methods'
  arguments that count updates, as for a full run. debug: the plan's fields of a :debug run.
  """
  parts = check_variant(variant, VARIANTS)
  small = "debug" in parts
  c = ConfigDict({"slug": slug, "debug": small, "part": "main"})
  for part in ("long", "ablations"):
    c.part = part if part in parts else c.part
  c.world, c.params, c.plan = world, ConfigDict(params or {}), ConfigDict(plan)
  name, settings = dial
  if small:  # the strong end only, and sizes of settings and arms give way
    shrink = DEBUG if debug is None else debug
    c.plan.update(shrink)
    lose = lambda x: x | {"plan": {k: v for k, v in x.get("plan", {}).items() if k not in shrink}}
    strong = list(settings)[-1]
    settings = {strong: lose(settings[strong])}
    arms = {k: lose(a) | {"knob": (), "lrs": ()} for k, a in arms.items()}
    lrs = lrs[:1]
  # A ConfigDict sorts its keys; the order of settings and of arms has a meaning.
  c.dial = ConfigDict({"name": name, "order": tuple(settings), "settings": settings})
  c.order, c.arms = tuple(arms), ConfigDict(arms)
  c.score = ConfigDict({"measure": score, "at": at, "less": less, "best": None})
  if best is not None:
    c.score.best = float(best)
  c.ranges = ConfigDict(ranges or {})
  c.lrs, c.tune_seeds, c.seeds = lrs, 2, (2 if small else seeds)
  c.exact, c.length, c.scaled, c.at_once = exact, length, scaled, 2
  return c


@dataclasses.dataclass(frozen=True)
class Cell:
  """Runs that differ by their seed only."""

  setting: str
  arm: str
  spec: dict  # all that decides the numbers

  @property
  def program(self) -> str:
    """Equal for cells that the same programs run: those that differ in the learning rate and in
    the number of updates only. A study may change what an arm's method is given (`alter`), so arms
    share none."""
    plan = {k: v for k, v in self.spec["plan"].items() if k != "updates"}
    return _digest(
      {k: v for k, v in self.spec.items() if k != "lr"} | {"plan": plan, "arm": self.arm}
    )

  @property
  def exam(self) -> str:
    """Equal for cells whose policies take the same exam."""
    fields = ("heldout", "eval_temperature", "problems", "split", "world_seed")
    plan = {k: v for k, v in self.spec["plan"].items() if k in fields}
    return _digest({"world": self.spec["world"], "params": self.spec["params"], "plan": plan})

  @property
  def file(self) -> str:
    return f"{self.setting}__{self.arm}__{_digest(self.spec)}.json".replace(" ", "-")


def cell(c, setting: str, name: str, trial: dict, share: float = 1) -> Cell:
  """`trial`: {"lr", "knob"} of the arm; `share`: of the full length of a run."""
  d, a = c.dial.settings[setting].to_dict(), c.arms[name].to_dict()
  plan = c.plan.to_dict() | d.get("plan", {}) | a["plan"]
  args = a["args"] | d.get("args", {})
  if a["knob"]:
    field, value = a["knob"][0], trial["knob"]
    home = plan if field.startswith("plan.") else args
    home[field.removeprefix("plan.")] = value
  if share != 1:
    every = plan.get("eval_every", 1)
    plan[c.length] = max(int(plan[c.length] * share) // every, 1) * every
    args |= {k: max(int(args[k] * share), 1) for k in c.scaled if k in args}
  params = c.params.to_dict() | d.get("params", {})
  world = d.get("world", c.world)
  spec = {"world": world, "params": params, "method": a["method"], "args": args, "plan": plan}
  return Cell(setting, name, spec | {"lr": trial["lr"]})


def check(c, module) -> None:
  """Raises UserError for a study that lacks a part or is not fair, before anything runs."""
  for field in ("CLAIM", "NOTES", "UNTESTED", "CHANGES", "HISTORY", "CURVES", "statements"):
    if not hasattr(module, field):
      raise UserError(f"experiments/{c.slug}/claim.py: has no {field}; see docs/add_a_study.md")
  for change in module.CHANGES:
    if change not in CHANGES:
      raise unknown("CHANGES", change, CHANGES)
  if len(module.HISTORY) > 2:
    raise UserError(f"HISTORY: {len(module.HISTORY)} changes after a look; at most two")
  roles = [c.arms[name].role for name in c.order]
  if roles.count("main") != 1 or "baseline" not in roles:
    raise UserError("arms: one has the role main, and at least one the role baseline")
  if len(c.dial.order) not in (2, 3) and not c.debug:
    raise UserError("dial: give two or three settings, from absent to strong")
  tuning.check(c)


def by_role(c, *roles: str) -> list[str]:
  return [name for name in c.order if c.arms[name].role in roles]


def strong(c) -> str:
  return c.dial.order[-1]


def _digest(x: dict) -> str:
  return hashlib.sha256(json.dumps(x, sort_keys=True, default=str).encode()).hexdigest()[:12]
