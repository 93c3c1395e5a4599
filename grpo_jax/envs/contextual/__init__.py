"""Families of control problems by the name of their module: `get("darkroom", n=9)`.

A new family is one file in this folder that defines `make(*, ...) -> Family`.
"""

import importlib
import inspect
import pkgutil

from grpo_jax.envs.contextual.family import Family
from grpo_jax.lookup import check_keys, unknown

_NOT_FAMILIES = ("family",)


def names() -> list[str]:
  """All families: the modules of this folder."""
  found = (m.name for m in pkgutil.iter_modules(__path__))
  return sorted(n for n in found if n not in _NOT_FAMILIES and not n.startswith("_"))


def get(name: str, **kwargs) -> Family:
  """The family `name` with these parameters.

  Raises UserError for an unknown name or parameter.
  """
  module = str(name).replace("-", "_")
  if module not in names():
    raise unknown("family", name, names())
  make = importlib.import_module(f"{__name__}.{module}").make
  check_keys(f"family.{module}", kwargs, inspect.signature(make).parameters)
  return make(**kwargs)
