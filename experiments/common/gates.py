"""Gates: does the instrument work? One line each; every study has every kind, or says why not.

  ideal      an oracle in the main arm's place satisfies every claim as stated
  headroom   oracle (or the best possible) minus the baseline at its end: at least 5 margins
  learned    the baseline ends above its start by a margin
  disease    the quantity that the paper treats is there
  acts       the mechanism is on
  budgets    arms use the same within 2%

A gate that fails makes the verdict of its setting "world cannot tell".
"""

import numpy as np

from experiments.common.statements import Statement
from grpo_jax.errors import UserError
from grpo_jax.names import unknown

KINDS = ("ideal", "headroom", "learned", "disease", "acts", "budgets")
HEADROOM = 5  # margins
BUDGET = 0.02


def without(kind: str, why: str) -> Statement:
  """This study has no such gate, for the reason `why`, one sentence."""
  if kind not in KINDS:
    raise unknown("gate", kind, KINDS)
  if len(why.split()) < 4:
    raise UserError(f"gates.without({kind!r}): say why in one sentence")
  return Statement("gate", f"no gate {kind!r}", 0.0, ">=", 0.0, margin=0.0, gate=kind, why=why)


def ideal(d, arm: str | None = None) -> Statement:
  """The claims are read once more with `arm` (the oracle) in the place of the main arm: all hold.

  Its numbers are put in by verdict.py, which asks the study again.
  """
  name = arm or d.oracle
  text = f"an ideal passes: every claim holds of {name} in the place of {d.main}"
  return Statement("gate", text, name, ">=", 0.0, margin=0.0, gate="ideal")


def headroom(d, measure: str | None = None) -> Statement:
  """By the study's score, or another measure, at the end."""
  measure = measure or d.score_measure
  y = d.final(d.baseline, measure)
  top = d.top(measure, "final")
  sign = -1.0 if measure == d.score_measure and d.less else 1.0
  text = f"headroom: best {measure} minus {d.baseline}'s at its end, at least 5 margins"
  need = HEADROOM * d.margin((measure, "final"))
  return Statement("gate", text, sign * top, ">=", sign * y, margin=need, gate="headroom")


def learned(d, measure: str | None = None, arm: str | None = None) -> Statement:
  """The baseline (or `arm`) ends above its start by a margin, below where less is better."""
  measure, arm = measure or d.score_measure, arm or d.baseline
  end, start = d.final(arm, measure), d.start(arm, measure)
  sign = -1.0 if measure == d.score_measure and d.less else 1.0
  text = f"{arm} learned: {measure} at the end above its start"
  margin = d.margin((measure, "final"))
  return Statement("gate", text, sign * end, ">=", sign * start, margin=margin, gate="learned")


def disease(text: str, x, kind: str, y, margin: float = 0.0) -> Statement:
  """disease("groups without variance", d.area(d.baseline, "train:zero_variance"), ">=", 0.2)."""
  return _threshold("disease", text, x, kind, y, margin)


def acts(text: str, x, kind: str, y, margin: float = 0.0) -> Statement:
  """Of the mechanism's own quantity."""
  return _threshold("acts", text, x, kind, y, margin)


def _threshold(gate: str, text: str, x, kind: str, y, margin: float) -> Statement:
  if kind not in (">=", "<="):
    raise UserError(f"gate {text!r}: {kind!r} is no comparison; use '>=' or '<='")
  if kind == "<=":
    x, y = y, x
  return Statement("gate", text, x, ">=", y, margin=margin, gate=gate)


def budgets(d, measure: str, arms: tuple[str, ...] = ()) -> Statement:
  """`measure` in total ("sampled", "trained", "rollouts", "updates", or one of the study's own) is
  the same for all `arms` (all but the oracle's and the ablations) within 2% of the baseline's."""
  arms = arms or d.compared
  base = np.mean(d.final(d.baseline, measure))
  each = {arm: float(np.mean(d.final(arm, measure)) / base - 1) for arm in arms}
  far = max(each, key=lambda a: abs(each[a]))
  text = f"equal {measure} within 2%: {far} is farthest, at {100 * each[far]:+.1f}%"
  return Statement("gate", text, BUDGET, ">=", abs(each[far]), margin=0.0, gate="budgets")
