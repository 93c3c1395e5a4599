"""From statements to a verdict: of a setting of the dial, then of the paper.

A setting
  reproduced         gates and all claims hold
  against            gates hold, a claim is against
  in part            gates hold, a claim holds, none is against
  no effect here     gates hold, the first claim is negligible
  world cannot tell  a gate fails
  undecided          else, and on fewer than five seeds
The paper
  reproduced  so at all settings that can tell, the strong end among them: where the disease is
              absent, its gate fails, and the paper claims nothing
  in part     claims hold at some settings, which are named
  else the verdict of the strong end
"""

import math

import numpy as np

from experiments.common import gates, tuning
from experiments.common.statements import Reading, Statement, read
from grpo_jax.errors import UserError

PROTOCOL = 2
WORDS = (
  "reproduced",
  "in part",
  "no effect here",
  "against",
  "undecided",
  "world cannot tell",
  "not run",
  "not built",
)
OWING = ("no effect here", "against", "world cannot tell")  # until :long was run
BLIND = "world cannot tell"
CLAIMS = 4


def judge(module, d) -> dict:
  """{"verdict", "seeds", "statements"} of one setting."""
  said = module.statements(d)
  check(said)
  level = 1 - 0.05 / sum(s.role == "claim" for s in said)
  found = [
    _ideal(module, d, s, level) if isinstance(s.x, str) else _read(d, s, level) for s in said
  ]
  seeds = min(len(runs) for runs in d.runs.values())
  return {"verdict": of_setting(found, seeds), "seeds": seeds, "statements": found}


def check(said: list[Statement]) -> None:
  """Raises UserError for a study without a kind of gate, or with no claim, or too many."""
  kinds = {s.gate for s in said if s.role == "gate"}
  if missing := [k for k in gates.KINDS if k not in kinds]:
    raise UserError(
      f"statements: no gate {missing[0]!r}; add gates.{missing[0]}(...), or "
      f"gates.without({missing[0]!r}, 'why this study has none')"
    )
  claims = sum(s.role == "claim" for s in said)
  if not 1 <= claims <= CLAIMS:
    raise UserError(f"statements: {claims} claims; give one to {CLAIMS}")


def of_setting(found: list[dict], seeds: int) -> str:
  results = [f["result"] for f in found if f["role"] == "claim"]
  if seeds < tuning.LEAST:
    return "undecided"
  if any(f["result"] != "holds" for f in found if f["role"] == "gate"):
    return BLIND
  if all(r == "holds" for r in results):
    return "reproduced"
  if "against" in results:
    return "against"
  if "holds" in results:
    return "in part"
  return "no effect here" if results[0] == "negligible" else "undecided"


def of_paper(settings: dict[str, str]) -> tuple[str, list[str]]:
  """(verdict, settings where claims hold); `settings`: verdicts from absent to strong."""
  tell = [s for s in settings if settings[s] != BLIND]
  where = [s for s in tell if settings[s] in ("reproduced", "in part")]
  strong = list(settings)[-1]
  if all(settings[s] == "reproduced" for s in (*tell, strong)):
    return "reproduced", where
  return ("in part", where) if where else (settings[strong], [])


def margin_of(d, s: Statement) -> float:
  """Its own, or that of the first reading that knows its measure."""
  if s.margin is not None:
    return float(s.margin)
  known = [x.of for x in (s.like, s.x, s.y) if isinstance(x, Reading) and x.of is not None]
  if known:
    return d.margin(known[0])
  if s.role == "side":
    return 0.0
  raise UserError(f"{s.role} {s.text!r}: compares sums or differences; give like= or margin=")


def _read(d, s: Statement, level: float) -> dict:
  return read(s, margin_of(d, s), level if s.role == "claim" else 0.95)


def _ideal(module, d, gate: Statement, level: float) -> dict:
  """The claims once more, with the ideal arm in the place of the main one."""
  there = d.instead(d.main, gate.x)
  claims = [s for s in module.statements(there) if s.role == "claim"]
  # A margin is that of the real arms: it does not depend on who stands where.
  results = [_read(d, s, level) for s in claims]
  hold = sum(r["result"] == "holds" for r in results)
  text = gate.text
  if failed := [r["text"] for r in results if r["result"] != "holds"]:
    text += f"; not: {'; '.join(failed)}"
  counted = Statement("gate", text, float(hold), ">=", float(len(claims)), 0.0, gate="ideal")
  return read(counted, 0.0) | {"claims": [_numbers(r) for r in results]}


def _numbers(found: dict) -> dict:
  return {k: v for k, v in found.items() if k not in ("role", "kind", "quote")}


def effect(d) -> dict:
  """Main minus baseline by the study's score: one point of the picture "effect against dial"."""
  x, y = d.score(d.main), d.score(d.baseline)
  sign = -1.0 if d.less else 1.0
  s = Statement("side", f"{d.main} - {d.baseline}", sign * x, ">", sign * y)
  margin = d.margin(x.of)
  found = read(s, margin)
  keep = ("x", "y", "difference", "low", "high", "margin", "visible", "result")
  return {k: found[k] for k in keep if k in found and (k == "result" or _finite(found[k]))}


def _finite(x) -> bool:
  return x is not None and math.isfinite(float(np.asarray(x)))
