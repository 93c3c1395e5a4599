"""Families of control problems by the name of their module: `get("darkroom", n=9)`.

A new family is one file in this folder that defines `make(*, ...) -> Family`.
"""

from grpo_jax.envs.contextual.family import Family
from grpo_jax.names import make, modules

_NOT_FAMILIES = ("family", "unlabelled")


def names() -> list[str]:
  """All families: the modules of this folder."""
  return list(_known())


def get(name: str, **kwargs) -> Family:
  """The family `name` with these parameters.

  Raises UserError for an unknown name or parameter.
  """
  return make("family", _known(), name, kwargs)


def _known():
  return modules(__name__, __path__, without=_NOT_FAMILIES)
