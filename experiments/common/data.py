"""What was measured at one setting of the dial, as a study's statements read it.

d(arm, measure)          f64[seeds, points]
d.start, final, area, early, total   (arm, measure = the score's) -> Reading f64[seeds]
d.score(arm)             what tuning maximized
d.main, d.baseline, d.oracle, d.placebo      names of arms by their roles
"""

import numpy as np

from experiments.common import study
from experiments.common.statements import Reading, reading
from grpo_jax.errors import UserError
from grpo_jax.names import unknown

FLOOR = 0.01  # of a measure's range
SHARE = 0.1  # of oracle minus baseline
UNIT = ("accuracy", "reward")  # with part:, turn: and the shares among the metrics: in [0, 1]
SHARES = ("correct", "idle", "zero_variance", "truncated", "reward")
_AT = {
  "start": lambda x: x[:, 0],
  "final": lambda x: x[:, -1],
  "area": lambda x: x[:, 1:].mean(axis=1) if x.shape[1] > 1 else x[:, 0],
  "early": lambda x: x[:, 1 : 1 + max(x.shape[1] // 2, 1)].mean(axis=1),
  "total": lambda x: x.sum(axis=1),
}


class Data:
  """runs: {arm: [{measure: [points]} of a seed]} of the arms that were run here. margins: whose
  margins hold here, too, where the oracle was not run."""

  def __init__(self, c, setting: str, runs: dict[str, list[dict]], margins: "Data | None" = None):
    self.c, self.setting, self.runs, self.margins = c, setting, runs, margins
    self.stands_for: dict[str, str] = {}
    self.score_measure, self.score_at, self.less = c.score.measure, c.score.at, c.score.less

  def instead(self, arm: str, other: str) -> "Data":
    """The same with the numbers of `other` where `arm` is asked for."""
    out = Data(self.c, self.setting, self.runs, self.margins)
    out.stands_for = {arm: other}
    return out

  def _first(self, role: str) -> str:
    found = study.by_role(self.c, role)
    if not found:
      raise UserError(f"arms: none has the role {role}, of which statements ask")
    return found[0]

  main = property(lambda self: self._first("main"))
  baseline = property(lambda self: self._first("baseline"))
  oracle = property(lambda self: self._first("oracle"))
  placebo = property(lambda self: self._first("placebo"))

  @property
  def compared(self) -> tuple[str, ...]:
    """Arms that were run whose budgets must be equal."""
    return tuple(a for a in study.by_role(self.c, "main", "baseline", "placebo") if a in self.runs)

  def __call__(self, arm: str, measure: str) -> np.ndarray:
    if arm not in self.c.arms:
      raise unknown("arm", arm, list(self.c.arms))
    name, arm = arm, self.stands_for.get(arm, arm)
    runs = self.runs.get(arm)
    if runs is None or (arm != name and measure not in runs[0]):
      count = max((len(r) for r in self.runs.values()), default=1)
      return np.full((count, 2), np.nan)  # of another part of the study, or no ideal has it
    if measure not in runs[0]:
      raise unknown(f"measure of {arm}", measure, list(runs[0]))
    return np.asarray([r[measure] for r in runs], float)

  def at(self, when: str, arm: str, measure: str | None = None) -> Reading:
    measure = measure or self.score_measure
    return reading(_AT[when](self(arm, measure)), (measure, when))

  def start(self, arm: str, measure: str | None = None) -> Reading:
    """At the first evaluation, before any update."""
    return self.at("start", arm, measure)

  def final(self, arm: str, measure: str | None = None) -> Reading:
    """At the last."""
    return self.at("final", arm, measure)

  def area(self, arm: str, measure: str | None = None) -> Reading:
    """Mean over the evaluations after the start: how early it is reached."""
    return self.at("area", arm, measure)

  def early(self, arm: str, measure: str | None = None) -> Reading:
    """Mean over the first half of them."""
    return self.at("early", arm, measure)

  def total(self, arm: str, measure: str) -> Reading:
    return self.at("total", arm, measure)

  def score(self, arm: str) -> Reading:
    return self.at(self.score_at, arm)

  def has(self, arm: str, measure: str) -> bool:
    return arm in self.runs and measure in self.runs[arm][0]

  def top(self, measure: str, when: str):
    """Of the oracle; of a study without: the best possible score."""
    oracles = study.by_role(self.c, "oracle")
    if oracles and self.has(oracles[0], measure):
      return self.at(when, oracles[0], measure)
    if self.margins is not None:
      return np.nan
    if self.c.score.best is not None and measure == self.score_measure:
      return self.c.score.best
    raise UserError(f"{measure}: no oracle has it and the config has no `best`; give margin=")

  def margin(self, of: tuple[str, str]) -> float:
    """The smallest difference that would matter of (measure, when)."""
    if self.margins is not None:
      return self.margins.margin(of)
    measure, when = of
    gap = abs(float(np.mean(self.top(measure, when) - self.at(when, self.baseline, measure))))
    return max(FLOOR * self.range(measure), 0.0 if np.isnan(gap) else SHARE * gap)

  def range(self, measure: str) -> float:
    if measure in self.c.ranges:
      return float(self.c.ranges[measure])
    kind, _, name = measure.partition(":")
    if measure in UNIT or kind in ("part", "turn") or (kind == "train" and name in SHARES):
      return 1.0
    raise UserError(f"{measure}: of unknown range; give ranges={{{measure!r}: ...}} or a margin")
