"""Token worlds by the name of their module: `get("modular_addition", modulus=7)` calls its `make`.

A new world is one file in this folder that defines `make(*, ...) -> World`.
"""

import importlib
import inspect
import pkgutil

from grpo_jax.envs.world import World
from grpo_jax.lookup import check_keys, unknown

_NOT_WORLDS = ("world", "control")


def names() -> list[str]:
  """All worlds: the modules of this folder."""
  found = (m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)
  return sorted(n for n in found if n not in _NOT_WORLDS and not n.startswith("_"))


def get(name: str, **kwargs) -> World:
  """The world `name` with these difficulty parameters.

  Raises UserError for an unknown name or parameter.
  """
  module = str(name).replace("-", "_")
  if module not in names():
    raise unknown("world", name, names())
  make = importlib.import_module(f"{__name__}.{module}").make
  check_keys(f"world.{module}", kwargs, inspect.signature(make).parameters)
  return make(**kwargs)
