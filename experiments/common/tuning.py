"""Every arm has the same number of tries, on seeds that are never reported; then seeds are fixed.

A try is a learning rate and a value of the arm's own knob. An arm without a knob gets as many
learning rates: those between and beyond the three. All tries run at the strong end of the dial, at
half length. The best mean score wins; of equal ones the smaller learning rate, then the earlier
value. The choice holds for all settings of the dial.
"""

import itertools
import math

import numpy as np

from experiments.common import statements
from grpo_jax.errors import UserError

SHARE = 0.5  # of the length of a run
LEAST = 5  # seeds without which there is no verdict


def tries(c, name: str) -> list[dict]:
  """[{"lr", "knob"}] of an arm, in the order of preference among equals."""
  a = c.arms[name]
  values = tuple(a.knob[1]) if a.knob else (None,)
  rates = sorted(a.lrs or c.lrs)
  if a.fixed:
    return [{"lr": rates[0], "knob": values[0]}]
  if not a.lrs:
    rates = more_rates(rates, most(c) // len(values))
  return [{"lr": lr, "knob": value} for lr in rates for value in values]


def most(c) -> int:
  """Tries that every arm has."""
  count = lambda a: len(a.lrs or c.lrs) * (len(a.knob[1]) if a.knob else 1)
  return max(count(a) for a in c.arms.values() if not a.fixed)


def more_rates(rates: list[float], count: int) -> list[float]:
  """`count` rates: geometric means between neighbours first, then beyond both ends."""
  rates = sorted(rates)
  between = [math.sqrt(x * y) for x, y in itertools.pairwise(rates)]
  step = rates[1] / rates[0] if len(rates) > 1 else 3.0
  outward = [rates[0] / step, rates[-1] * step, rates[0] / step**2, rates[-1] * step**2]
  wanted = [*rates, *between, *outward]
  return sorted(float(f"{x:.2g}") for x in wanted[:count])


def check(c) -> None:
  """Raises UserError for arms with unequal numbers of tries."""
  for name in c.order:
    a = c.arms[name]
    if a.knob and (len(a.knob) != 2 or isinstance(a.knob[1], str)):
      raise UserError(f"arms.{name}.knob: give (name, (value, value))")
    if not a.fixed and len(tries(c, name)) != most(c):
      raise UserError(
        f"arms.{name}: {len(tries(c, name))} tries where others have {most(c)}; give it as many "
        "learning rates x values of its knob"
      )


def choose(c, scores: dict[str, list[tuple[dict, np.ndarray]]]) -> dict[str, dict]:
  """{arm: {"chosen": try, "table": [{"lr", "knob", "scores"}]}}; `scores`: per arm (try, one a
  seed), greater is better; empty for one that is not tuned."""
  out = {}
  for name, found in scores.items():
    options = found or [(t, np.zeros(0)) for t in tries(c, name)[:1]]
    value = lambda x: float(np.nan_to_num(x[1].mean(), nan=-np.inf)) if x[1].size else 0.0
    best = max(options, key=value)  # the first among equals
    table = [t | {"scores": [round(float(s), 5) for s in x]} for t, x in found]
    out[name] = {"chosen": best[0], "tries": len(options), "table": table}
    if c.arms[name].fixed:
      out[name]["fixed"] = c.arms[name].fixed
  return out


def seeds(c, best: list[np.ndarray], seconds: float, margin: float) -> dict:
  """How many seeds are reported: {"strong", "other", "spread", "rule"}.

  best: scores of the tries chosen, one array a tuned arm, over the same seeds. The cost allows 20
  where runs are exact and take seconds, 10 under 10 s a run, else 5; 5 are enough where they show
  half a margin. spread: deviation of a paired difference, from what is left of `best` without the
  arms' and the seeds' means.
  """
  if c.seeds:
    few = min(c.seeds, LEAST)
    return {"strong": c.seeds, "other": few, "spread": None, "rule": "set by the config"}
  allowed = 20 if c.exact and seconds < 5 else 10 if seconds < 10 else LEAST
  spread = None
  if len(best) > 1 and best[0].size > 1:
    x = np.stack(best)
    rest = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean()
    spread = math.sqrt(2 * float((rest**2).sum()) / ((x.shape[0] - 1) * (x.shape[1] - 1)))
  shown = None if spread is None else statements.POWER * spread / math.sqrt(LEAST)
  enough = not c.exact and shown is not None and shown <= margin / 2
  rule = f"{seconds:.1f} s a run allow {allowed}"
  if enough:
    rule += f"; {LEAST} show {shown:.4f}, half a margin"
  spread = None if spread is None else round(spread, 5)
  return {"strong": LEAST if enough else allowed, "other": LEAST, "spread": spread, "rule": rule}
