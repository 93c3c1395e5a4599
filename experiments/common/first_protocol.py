"""The first protocol, for studies that have not been moved to the second: it goes with the last.

From numbers to a verdict, by a rule that knows nothing of the paper.

A claim is written, before anything runs, as statements about two arms with the same seeds. D is the
difference of a seed, [low, high] the 95% bootstrap interval of its mean over seeds, `margin` the
smallest difference that would matter:

  more       x > y    holds if low > 0; fails if high < margin
  not_less   x >= y   holds if low > -margin; fails if high < 0 otherwise
  verdict    confirmed: all hold; refuted: one fails; inconclusive: neither
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs.common import check_variant

RULE = (
  "Statements compare two arms seed by seed; [low, high] is the 95% bootstrap interval of the mean "
  "difference. 'more' holds if low > 0 and fails if high < margin; 'not less' holds if low > "
  "-margin and fails if high < 0 otherwise. Confirmed: all hold. Refuted: one fails. Else "
  "inconclusive."
)


class Statement(NamedTuple):
  text: str
  kind: str  # "more" or "not less"
  x: np.ndarray  # one number a seed
  y: np.ndarray
  margin: float


def more(text: str, x, y, margin: float = 0.0) -> Statement:
  return Statement(text, "more", *_paired(x, y), margin)


def not_less(text: str, x, y, margin: float) -> Statement:
  return Statement(text, "not less", *_paired(x, y), margin)


def judge(statements: list[Statement]) -> tuple[str, list[dict]]:
  """(verdict, what was found of every statement)."""
  found = [_read(s) for s in statements]
  results = [f["result"] for f in found]
  if "fails" in results:
    return "refuted", found
  return ("inconclusive" if "open" in results else "confirmed"), found


def interval(x: np.ndarray, repeats: int = 4000) -> tuple[float, float]:
  """95% percentile bootstrap interval of the mean."""
  rng = np.random.default_rng(0)
  means = x[rng.integers(0, len(x), (repeats, len(x)))].mean(axis=1)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def _paired(x, y):
  x = np.asarray(x, float)
  y = np.broadcast_to(np.asarray(y, float), x.shape)
  return x, y


def _read(s: Statement) -> dict:
  difference = s.x - s.y
  low, high = interval(difference)
  if s.kind == "more":
    result = "fails" if high < s.margin else "holds" if low > 0 else "open"
  else:
    result = "holds" if low > -s.margin else "fails" if high < 0 else "open"
  numbers = {
    "x": s.x.mean(), "y": s.y.mean(), "difference": difference.mean(), "low": low, "high": high
  }  # fmt: skip
  rounded = {k: round(float(v), 4) for k, v in numbers.items()}
  return {"text": s.text, "kind": s.kind, **rounded, "margin": s.margin, "result": result}


def config(slug: str, variant: str, *, plan, worlds, arms, lr: float, seeds: int = 10):
  """Of a study whose runs wait for the second protocol."""
  debug = "debug" in check_variant(variant)
  c = ConfigDict({"slug": slug, "debug": debug, "seeds": seeds, "lrs": (lr,), "plan": plan})
  c.worlds, c.arms = ConfigDict(worlds), ConfigDict(arms)
  return c
