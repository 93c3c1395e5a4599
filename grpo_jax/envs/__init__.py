"""Token worlds by the name of their module: `get("modular_addition", modulus=7)` calls its `make`.

A new world is one file in `worlds` that defines `make(*, ...) -> World`.
"""

from grpo_jax.envs import worlds
from grpo_jax.envs.world import World
from grpo_jax.names import make, modules


def names() -> list[str]:
  """All worlds: the modules of `worlds`."""
  return list(_known())


def get(name: str, **kwargs) -> World:
  """The world `name` with these difficulty parameters.

  Raises UserError for an unknown name or parameter.
  """
  return make("world", _known(), name, kwargs)


def _known():
  return modules(worlds.__name__, worlds.__path__)
