"""Token worlds by the name of their module: `get("modular_addition", modulus=7)` calls its `make`.

A new world is one file in `worlds` that defines `make(*, ...) -> World`.
"""

from grpo_jax.envs import worlds
from grpo_jax.envs.world import World
from grpo_jax.names import make, modules


def names() -> list[str]:
  """All worlds: the modules of `worlds`."""
  return modules(worlds.__path__)


def get(name: str, **kwargs) -> World:
  """The world `name` with these difficulty parameters.

  Raises UserError for an unknown name or parameter.
  """
  return make("world", worlds.__name__, names(), name, kwargs)
