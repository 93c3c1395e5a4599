"""Finding things by name, and saying the nearest spelling where there is no such thing.

Standard library only: the reward processes import this, and their start-up counts.
"""

import difflib
import importlib
import numbers
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from grpo_jax.errors import UserError


def unknown(field: str, name: object, known: Iterable[str]) -> UserError:
  """The error for a misspelt name: says which field, the nearest known name, and all of a few."""
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
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


def modules(package: str, path: Iterable[str], without: Iterable[str] = ()) -> dict[str, str]:
  """{name: full name} of the modules in a package's `__path__`: no packages, nothing private."""
  found = sorted(m.name for m in pkgutil.iter_modules(path) if not m.ispkg and m.name[0] != "_")
  return {name: f"{package}.{name}" for name in found if name not in set(without)}


def maker(kind: str, known: Mapping[str, str], name: str) -> Callable:
  """`make` of the module `name`, a key of `known` in which hyphens stand for underscores."""
  module = str(name).replace("-", "_")
  one_of(kind, module, known)
  return importlib.import_module(known[module]).make


def make(kind: str, known: Mapping[str, str], name: str, kwargs: dict) -> Any:
  """What the `make` of module `name` returns for these keywords.

  Raises UserError for a name not `known`, an unknown keyword and a missing one.
  """
  import inspect

  made = maker(kind, known, name)
  here = f"{kind} {name}"
  parameters = inspect.signature(made).parameters
  check_keys(here, kwargs, parameters)
  for key, parameter in parameters.items():
    if parameter.default is parameter.empty and key not in kwargs:
      raise UserError(f"{here}: give {key}, which has no default")
  return made(**kwargs)
