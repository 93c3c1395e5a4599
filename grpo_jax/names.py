"""Finding things by name, and saying the nearest spelling where there is no such thing.

Standard library only: the reward processes import this, and their start-up counts.
"""

import difflib
import importlib
import numbers
import pkgutil
from collections.abc import Iterable
from typing import Any

from grpo_jax.errors import UserError


def unknown(field: str, name: object, known: Iterable[str]) -> UserError:
  """The error for a misspelt name: says which field, the nearest known name, and all of a few."""
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
  hint = [f"did you mean {near[0]!r}?"] if near else []
  if not near or len(known) <= 8:
    hint.append(f"known: {', '.join(known[:20]) or 'none'}")
  return UserError(f"{field}: unknown name {name!r}; {' '.join(hint)}")


def check_keys(field: str, given: Iterable[str], known: Iterable[str]) -> None:
  known = set(known)
  for key in given:
    if key not in known:
      raise unknown(field, key, known)


def one_of(field: str, name: object, known: Iterable[str]) -> None:
  """UserError unless `name` is one of the `known`."""
  known = list(known)
  if name not in known:
    raise unknown(field, name, known)


def between(
  field: str,
  value: Any,
  low: float | None = None,
  high: float | None = None,
  *,
  above: float | None = None,
  below: float | None = None,
  what: str = "",
) -> None:
  """UserError unless low <= value <= high and above < value < below, as far as they are given.

  value: a number, or a tuple of them; None and NaN are outside. what: what the number is.
  """
  bounds = (
    (low, lambda x: x >= low, "at least"),
    (above, lambda x: x > above, "above"),
    (high, lambda x: x <= high, "at most"),
    (below, lambda x: x < below, "below"),
  )
  given = [(bound, holds, word) for bound, holds, word in bounds if bound is not None]
  for x in value if isinstance(value, tuple | list) else (value,):
    if not isinstance(x, numbers.Real) or not all(holds(x) for _, holds, _ in given):
      wanted = " and ".join(f"{word} {bound:g}" for bound, _, word in given)
      raise UserError(f"{field}={value}: must be {what}{', ' * bool(what)}{wanted}")


def modules(path: Iterable[str], without: Iterable[str] = ()) -> list[str]:
  """The modules in a package's `__path__` by name: no packages, nothing private."""
  found = {m.name for m in pkgutil.iter_modules(path) if not m.ispkg and m.name[0] != "_"}
  return sorted(found - set(without))


def make(kind: str, package: str, known: Iterable[str], name: str, kwargs: dict) -> Any:
  """`package`.`name`.make(**kwargs). UserError for a name not `known` and an unknown parameter."""
  import inspect

  module = str(name).replace("-", "_")
  if module not in known:
    raise unknown(kind, name, known)
  maker = importlib.import_module(f"{package}.{module}").make
  check_keys(f"{kind}.{module}", kwargs, inspect.signature(maker).parameters)
  return maker(**kwargs)
