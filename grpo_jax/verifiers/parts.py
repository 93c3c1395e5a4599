"""Reward parts by name: built-in ones, or any function as "module:function".

A part is a name, or {"name", "weight", "args", "verdict", "threshold", "sources", "units"}:

  reward  = sum of weight * part over the parts that are not None
  correct = some verdict part has value >= threshold

With `units` = K above 0 a part judges the units of a completion (lines, turns): its function gives
a list of numbers, of which the first K count (the rest is of text beyond the last unit), the part's
value is their sum, and methods read each in unit_reward.

`verdict` marks the parts that judge correctness; where none is marked, the first part that is not
about form (format, length). `sources` limits a part to problems with one of these labels.
"""

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from grpo_jax.errors import UserError
from grpo_jax.names import check_keys, unknown
from grpo_jax.verifiers.item import Item

BUILTIN = {
  "exact": "grpo_jax.verifiers.exact",
  "math": "grpo_jax.verifiers.math",
  "reasoning_gym": "grpo_jax.verifiers.gym",
  "format": "grpo_jax.verifiers.format",
  "length": "grpo_jax.verifiers.length",
  "lines": "grpo_jax.verifiers.lines",
}
_FORM = ("format", "length")
Value = float | list[float] | None  # of one part: a list where it judges units


@dataclasses.dataclass(frozen=True)
class Spec:
  name: str
  weight: float = 1.0
  args: dict = dataclasses.field(default_factory=dict)
  verdict: bool | None = None
  threshold: float = 1.0
  sources: tuple[str, ...] | None = None
  units: int = 0


def parse(parts: Sequence[Any]) -> list[Spec]:
  """Checks names and keys without importing any scorer; UserError names the part."""
  if isinstance(parts, str) or not parts:
    raise UserError(f"reward.parts: expected a list with at least one part, got {parts!r}")
  specs = []
  for i, part in enumerate(parts):
    part: dict[str, Any] = {"name": part} if isinstance(part, str) else dict(part)
    where = f"reward.parts[{i}]"
    check_keys(where, part, Spec.__dataclass_fields__)
    name = part.get("name")
    if name not in BUILTIN and (not isinstance(name, str) or ":" not in name):
      raise unknown(f"{where}.name (or give 'module:function')", name, BUILTIN)
    part["args"] = dict(part.get("args") or {})
    spec = Spec(**part)
    if not isinstance(spec.weight, int | float) or not math.isfinite(spec.weight):
      raise UserError(f"{where}.weight: expected a finite number, got {spec.weight!r}")
    if not isinstance(spec.units, int) or spec.units < 0:
      raise UserError(f"{where}.units: expected a number of units, at least 0, got {spec.units!r}")
    if spec.units and any(s.units for s in specs):
      raise UserError(f"{where}.units: one part can judge units; {specs[-1].name} does already")
    specs.append(spec)
  if all(s.verdict is None for s in specs):
    judges = [i for i, s in enumerate(specs) if s.name not in _FORM] or [0]
    specs[judges[0]] = dataclasses.replace(specs[judges[0]], verdict=True)
  return specs


def _user_function(name: str, args: dict) -> Callable:
  module, _, attribute = name.partition(":")
  try:
    function = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as e:
    raise UserError(f"reward.parts.name: cannot import {name!r}: {e}") from e
  if not callable(function):
    raise UserError(f"reward.parts.name: {name!r} is not a function")

  def score(completion: str, item: Item, tokens: int | None) -> "Value":
    del tokens
    return cast("Value", function(completion, item, **args))  # checked by score_one

  return score


def load(specs: Sequence[Spec]) -> list[Callable]:
  """The functions (completion, item, tokens) -> float | None of the parts, in order."""
  scorers = []
  for spec in specs:
    if spec.name not in BUILTIN:
      scorers.append(_user_function(spec.name, spec.args))
      continue
    make = importlib.import_module(BUILTIN[spec.name]).make
    check_keys(f"reward.parts.args of {spec.name}", spec.args, inspect.signature(make).parameters)
    try:
      scorers.append(make(**spec.args))
    except TypeError as e:
      raise UserError(f"reward.parts.args of {spec.name}: {e}") from e
  return scorers


def score_one(
  specs: Sequence[Spec], scorers: Sequence[Callable], completion: str, item: Item, tokens
) -> list[Value]:
  """Values of all parts; an exception of a scorer passes through."""
  values: list[Value] = []
  for spec, scorer in zip(specs, scorers, strict=True):
    if spec.sources is not None and item.meta.get("source") not in spec.sources:
      values.append(None)
      continue
    value = scorer(completion, item, tokens)
    if value is not None:
      value = _units(spec, value) if spec.units else _finite(spec, value)
    values.append(value)
  return values


def _finite(spec: Spec, value) -> float:
  value = float(value)
  if not math.isfinite(value):
    raise ValueError(f"reward part {spec.name} returned {value}")
  return value


def _units(spec: Spec, values) -> list[float]:
  if isinstance(values, int | float | str):
    raise ValueError(f"reward part {spec.name} returned {values!r}, not a number a unit")
  return [_finite(spec, value) for value in values[: spec.units]]
