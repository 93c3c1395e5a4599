"""What a study says of its arms, and what was found of it.

A statement compares two readings (one number a seed, or a constant), seed by seed. D is the
difference of a seed, [low, high] the t-interval of its mean, at 1 - 0.05/k for each of k claims and
at 0.95 for gates and sides; visible = 2.8 standard errors of D, the smallest difference that these
seeds would have shown. `margin` is the smallest difference that would matter.

  claim(text, x, ">", y, quote)    decides; at most four, each beside the abstract's words
  claim(text, x, ">=", y, quote)   "not less"
  side(text, x, ">", y)            shown, never decides: ablations, mechanisms, what we expected

  holds       low > 0            (">=": low > -margin)
  against     high < 0           (">=": high < -margin)
  negligible  -margin < low, high < margin and visible <= margin
  open        else;   "not run" where an arm was not run
  a gate      holds if D's mean >= margin and low >= 0, else fails: see gates.py

No margin given: 0.1 of |oracle - baseline| by the measure of the first of x, y that knows its own,
never below 0.01 of the measure's range. So differences of readings need a margin, or `like=`, a
reading whose margin is theirs.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import stats

from grpo_jax.errors import UserError

POWER = 2.8  # standard errors: 80% power at two-sided 5%
RESULTS = ("holds", "against", "negligible", "open", "fails", "not run")
RULE = (
  "Arms are compared seed by seed; [low, high] is the paired t-interval of the mean difference at "
  "1 - 0.05/k for k claims. '>' holds if low > 0 and is against if high < 0; '>=' holds if low > "
  "-margin and is against if high < -margin; negligible: the interval lies within the margin and "
  "2.8 standard errors do, too; else open. The margin is 0.1 of oracle minus baseline, at least "
  "0.01 of the range."
)


class Reading(np.ndarray):
  """f64[seeds] that knows what it is: of = (measure, at), None after arithmetic."""

  of: Any = None

  def __array_finalize__(self, parent):
    self.of = None


def reading(values, of: tuple[str, str] | None) -> Reading:
  out = np.asarray(values, float).view(Reading)
  out.of = of
  return out


@dataclasses.dataclass(frozen=True)
class Statement:
  role: str  # "claim", "side" or "gate"
  text: str
  x: Any
  kind: str  # ">" or ">="
  y: Any
  margin: float | None = None
  like: Any = None  # a reading whose margin is taken
  quote: str = ""  # of a claim: the abstract's words
  gate: str = ""  # of a gate: which kind
  why: str = ""  # the reason for a margin of its own; of a missing gate: why it is missing


def claim(text: str, x, kind: str, y, quote: str, *, margin=None, like=None, why: str = ""):
  """A sentence of the abstract, in `quote`, as a comparison. A margin needs its reason, `why`."""
  if not quote.strip():
    raise UserError(f"claim {text!r}: quote the abstract's sentence beside it")
  if margin is not None and not why.strip():
    raise UserError(f"claim {text!r}: margin={margin} needs its reason; give why=")
  return _compare("claim", text, x, kind, y, margin=margin, like=like, quote=quote, why=why)


def side(text: str, x, kind: str, y, *, margin=None, like=None):
  return _compare("side", text, x, kind, y, margin=margin, like=like)


def _compare(role: str, text: str, x, kind: str, y, **more) -> Statement:
  if kind not in (">", ">="):
    raise UserError(f"{role} {text!r}: {kind!r} is no comparison; use '>' or '>='")
  return Statement(role, text, x, kind, y, **more)


def interval(difference: np.ndarray, level: float = 0.95) -> tuple[float, float]:
  """t-interval of the mean; of one number everything."""
  n = len(difference)
  if n < 2:
    return -math.inf, math.inf
  half = stats.t.ppf(0.5 + level / 2, n - 1) * standard_error(difference)
  return float(difference.mean() - half), float(difference.mean() + half)


def standard_error(difference: np.ndarray) -> float:
  return float(difference.std(ddof=1) / math.sqrt(len(difference)))


def read(s: Statement, margin: float, level: float = 0.95) -> dict:
  """What was found of it, ready for JSON."""
  x, y = np.broadcast_arrays(np.asarray(s.x, float), np.asarray(s.y, float))
  head = {"role": s.role, "text": s.text, "kind": s.kind}
  head |= {k: v for k in ("gate", "quote", "why") if (v := getattr(s, k))}
  x, y = np.atleast_1d(x), np.atleast_1d(y)
  if np.isnan(x).any() or np.isnan(y).any():
    return head | {"result": "not run", "margin": _short(margin)}
  difference = x - y
  constant = difference.size == 1 or np.ptp(difference) == 0
  middle = float(difference.mean())
  if constant and s.role == "gate":
    low, high, visible = middle, middle, 0.0
  else:
    low, high = interval(difference, level)
    visible = POWER * standard_error(difference) if difference.size > 1 else math.inf
  if s.role == "gate":
    result = "holds" if middle >= margin and low >= 0 else "fails"
  else:
    result = result_of(s.kind, low, high, margin, visible)
  numbers = {
    "x": x.mean(), "y": y.mean(), "difference": middle, "low": low, "high": high,
    "margin": margin, "visible": visible,
  }  # fmt: skip
  return head | {k: _short(v) for k, v in numbers.items()} | {"result": result}


def result_of(kind: str, low: float, high: float, margin: float, visible: float) -> str:
  """The table of the head."""
  shift = margin if kind == ">=" else 0.0
  if low > -shift:
    return "holds"
  if high < -shift:
    return "against"
  small = -margin < low and high < margin and visible <= margin
  return "negligible" if small else "open"


def _short(x) -> float | None:
  return round(float(x), 4) if math.isfinite(x) else None
