"""Methods by the name of their module: `get("grpo", eps_high=0.28)` calls methods.base.grpo.make.

A new paper is one file in this folder that defines `make(*, ...) -> Method`; there is no list to
edit. Hyphens in a name stand for underscores.
"""

import difflib
import importlib
import inspect
import pkgutil

from grpo_jax.errors import UserError
from grpo_jax.types import Method


def names() -> list[str]:
  """All methods: the modules of this folder and of `base`."""
  return sorted(_places())


def get(name: str, **kwargs) -> Method:
  """The method `name` with the given hyperparameters; the others keep the defaults of its `make`.

  Raises UserError for an unknown name, an unknown keyword and a missing required keyword.
  """
  make = _make_of(name)
  known = inspect.signature(make).parameters
  for key in kwargs:
    if key not in known:
      raise UserError(
        f"method {name!r} has no hyperparameter {key!r}{_hint(key, known)}; "
        f"it has: {', '.join(known) or 'none'}"
      )
  for key, parameter in known.items():
    if parameter.default is parameter.empty and key not in kwargs:
      raise UserError(f"method {name!r} needs the hyperparameter {key!r}: it has no default")
  return make(**kwargs)


def defaults(name: str) -> dict:
  """The hyperparameters of `name` and their defaults; a required one stands as `...`."""
  known = inspect.signature(_make_of(name)).parameters
  return {k: ... if p.default is p.empty else p.default for k, p in known.items()}


def _make_of(name):
  places = _places()
  module = str(name).replace("-", "_")
  if module not in places:
    raise UserError(
      f"method {name!r} is unknown{_hint(module, places)}; there are: {', '.join(sorted(places))}"
    )
  return importlib.import_module(places[module]).make


def _places():
  from grpo_jax.methods import base

  found = {}
  for package, path in (("grpo_jax.methods.base", base.__path__), (__name__, __path__)):
    for module in pkgutil.iter_modules(path):
      if not module.ispkg and not module.name.startswith("_"):
        found[module.name] = f"{package}.{module.name}"
  return found


def _hint(word, known):
  close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
  return f" (did you mean {' or '.join(repr(c) for c in close)}?)" if close else ""
