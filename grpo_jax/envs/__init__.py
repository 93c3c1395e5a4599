"""Token worlds by the name of their module: `get("modular_addition", modulus=7)` calls its `make`.

A new world is one file in this folder that defines `make(*, ...) -> World`.
"""

from grpo_jax.envs.world import World
from grpo_jax.lookup import make, modules

_NOT_WORLDS = ("world", "control", "simulator")


def names() -> list[str]:
  """All worlds: the modules of this folder."""
  return modules(__path__, without=_NOT_WORLDS)


def get(name: str, **kwargs) -> World:
  """The world `name` with these difficulty parameters.

  Raises UserError for an unknown name or parameter.
  """
  return make("world", __name__, names(), name, kwargs)
