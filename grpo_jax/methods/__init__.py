"""Methods by the name of their module: `get("grpo", eps_high=0.28)` calls methods.base.grpo.make.

A new paper is one file in this folder that defines `make(*, ...) -> Method`; there is no list to
edit. Hyphens in a name stand for underscores.
"""

import inspect

from grpo_jax.names import make, maker, modules
from grpo_jax.types import Method


def names() -> list[str]:
  """All methods: the modules of this folder and of `base`."""
  return sorted(_known())


def get(name: str, **kwargs) -> Method:
  """The method `name` with the given hyperparameters; the others keep the defaults of its `make`.

  Raises UserError for an unknown name, an unknown keyword and a missing required keyword.
  """
  return make("method", _known(), name, kwargs)


def defaults(name: str) -> dict:
  """The hyperparameters of `name` and their defaults; a required one stands as `...`."""
  known = inspect.signature(maker("method", _known(), name)).parameters
  return {k: ... if p.default is p.empty else p.default for k, p in known.items()}


def _known():
  from grpo_jax.methods import base

  return modules(base.__name__, base.__path__) | modules(__name__, __path__)
