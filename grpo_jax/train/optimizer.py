"""The optimizer of a run from its config: optax, gradient norm clipped first."""

import math
from collections.abc import Callable

import optax

from grpo_jax.errors import UserError

SCHEDULES = ("constant", "linear", "cosine")


def make_schedule(c, steps: int) -> Callable:
  """Linear warm-up over `warmup` updates, then constant, linear to 0 or cosine to 0 at `steps`."""
  if c.schedule not in SCHEDULES:
    raise UserError(f"optimizer.schedule={c.schedule!r}: use one of {', '.join(SCHEDULES)}")
  rest = max(steps - c.warmup, 1)
  after = {
    "constant": lambda: optax.constant_schedule(c.lr),
    "linear": lambda: optax.linear_schedule(c.lr, 0.0, rest),
    "cosine": lambda: optax.cosine_decay_schedule(c.lr, rest),
  }[c.schedule]()
  if not c.warmup:
    return after
  # From lr / warmup: a first update at 0 would be wasted.
  warm = optax.linear_schedule(c.lr / c.warmup, c.lr, c.warmup - 1 or 1)
  return optax.join_schedules([warm, after], [c.warmup])


def make_optimizer(c, steps: int) -> tuple[optax.GradientTransformation, Callable]:
  """(transformation, schedule). `steps` counts optimizer updates of the whole run."""
  for name, low, high in (
    ("lr", 0, math.inf),
    ("b1", None, 1),
    ("b2", None, 1),
    ("eps", 0, math.inf),
    ("weight_decay", None, math.inf),
    ("clip_norm", None, math.inf),
  ):
    value = c[name]
    if not (0 if low is None else low) <= value < high or (low == 0 and value == 0):
      above = "above" if low == 0 else "at least"
      below = "" if high == math.inf else f" and below {high}"
      raise UserError(f"optimizer.{name}={value}: must be {above} 0{below}")
  schedule = make_schedule(c, steps)
  makers = {
    "adamw": lambda: optax.adamw(
      schedule, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay
    ),
    "sgd": lambda: optax.sgd(schedule),
  }
  if c.name not in makers:
    raise UserError(f"optimizer.name={c.name!r}: use one of {', '.join(makers)}")
  parts = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
  return optax.chain(*parts, makers[c.name]()), schedule
