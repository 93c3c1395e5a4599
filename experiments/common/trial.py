"""A study from its first look to all that was measured: check, tune, fix the seeds, run.

The main part runs at every setting of the dial; `long` and `ablations` come after it, at the strong
end.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.common import dry, study, tuning
from experiments.common.data import Data
from experiments.common.runner import Runner
from experiments.common.study import TUNE

MAIN = ("main", "baseline", "oracle", "placebo")


@dataclasses.dataclass
class Found:
  """All that was measured."""

  settings: dict[str, Data]
  tuning: dict[str, dict]
  seeds: dict
  long: Data | None
  ablations: Data | None
  seconds: float  # of the runs, without compiling
  warm: dict[str, list[int]]  # steps of the warm starts, a setting


def run(c, module, workdir: Path, say) -> Found:
  """Runs what is missing."""
  dry.check(c, module, dry.first_trials(c))
  go = Runner(c, module, workdir, say)
  names = study.by_role(c, *MAIN)
  if c.debug:  # one of a kind; the others are only traced
    names = [found[0] for role in MAIN[:3] if (found := study.by_role(c, role))]
  extra = study.by_role(c, "ablation") if c.part == "ablations" else []
  tuned = tune(c, go, [*names, *extra], say)
  seeds = fix_seeds(c, go, tuned, say)
  strong = study.strong(c)

  jobs = lambda setting, arms, count, share=1: [
    (study.cell(c, setting, a, tuned[a]["chosen"], share), s) for a in arms for s in range(count)
  ]
  count = {s: seeds["strong" if s == strong else "other"] for s in c.dial.order}
  wanted = {s: jobs(s, names, count[s]) for s in c.dial.order}
  more = jobs(strong, extra, count[strong])
  pair = [study.by_role(c, "main")[0], study.by_role(c, "baseline")[0]]
  longer = jobs(strong, pair, min(seeds["other"], count[strong]), study.LONG)
  every = [j for part in wanted.values() for j in part] + more
  go(every + (longer if c.part == "long" else []))

  settings = {s: Data(c, s, collect(go, wanted[s])) for s in c.dial.order}
  main = settings[strong]
  long = ablations = None
  if all(go.store.get(*j) for j in longer):
    long = Data(c, strong, collect(go, longer), margins=main)
  if extra:
    ablations = Data(c, strong, main.runs | collect(go, more), margins=main)
  ran = [r for j in every if (r := go.store.get(*j))]
  seconds = sum(r["seconds"] for r in ran)
  warm = {s: _warm(go, wanted[s]) for s in wanted}
  return Found(settings, tuned, seeds, long, ablations, seconds, warm)


def tune(c, go: Runner, names: list[str], say) -> dict[str, dict]:
  """What tuning.choose gives, after all tries at the strong end."""
  share = 1 if c.debug else tuning.SHARE
  seeds = [TUNE + s for s in range(c.tune_seeds)]
  cells = {
    a: [(t, study.cell(c, study.strong(c), a, t, share)) for t in tuning.tries(c, a)]
    for a in names
    if not c.arms[a].fixed and len(tuning.tries(c, a)) > 1
  }
  go([(cell, s) for found in cells.values() for _, cell in found for s in seeds])
  scores = {a: [(t, _score(c, go, cell, seeds)) for t, cell in cells.get(a, [])] for a in names}
  out = tuning.choose(c, scores)
  for name, found in out.items():
    if found["table"]:
      chosen = found["chosen"]
      say(f"tuned {name}: lr {chosen['lr']:g}" + (f", knob {chosen['knob']}" if chosen["knob"]
          is not None else ""))  # fmt: skip
  return out


def fix_seeds(c, go: Runner, tuned: dict, say) -> dict:
  """tuning.seeds from the tries that were chosen; without tuning, as many as the config says, or
  the least."""
  seeds = [TUNE + s for s in range(c.tune_seeds)]
  strong, best, seconds, scores = study.strong(c), [], [0.0], {}
  for name, found in tuned.items():
    if found["table"]:
      cell = study.cell(c, strong, name, found["chosen"], 1 if c.debug else tuning.SHARE)
      best.append(_score(c, go, cell, seeds))
      scores[c.arms[name].role] = best[-1].mean()
      seconds += [go.store.need(cell, s)["seconds"] / tuning.SHARE for s in seeds]
  margin = 0.1 * abs(scores.get("oracle", np.nan) - scores.get("baseline", np.nan))
  floor = 0.01 * float(c.ranges.get(c.score.measure, 1.0))
  out = tuning.seeds(c, best, max(seconds), max(floor, float(np.nan_to_num(margin))))
  say(f"seeds: {out['strong']} at the strong end, {out['other']} elsewhere ({out['rule']})")
  return out


def collect(go: Runner, jobs) -> dict[str, list[dict]]:
  """{arm: [numbers of a seed]}."""
  runs = {}
  for cell, seed in jobs:
    runs.setdefault(cell.arm, []).append(go.store.numbers(cell, [seed])[0])
  return runs


def _score(c, go: Runner, cell, seeds) -> np.ndarray:
  d = Data(c, cell.setting, {cell.arm: go.store.numbers(cell, seeds)})
  return (-1.0 if c.score.less else 1.0) * np.asarray(d.score(cell.arm))


def _warm(go: Runner, jobs) -> list[int]:
  one = {seed: go.store.need(cell, seed).get("warm_steps") for cell, seed in jobs}
  return [w for w in one.values() if w is not None]
