"""Which implementation of an op runs.

An op has a table {name: function}, all functions with one signature. A named one runs or raises;
without a name, the first of the backend's order that accepts the input does: a function refuses by
raising `NotImplementedError`. Names: "reference" (the specification), "xla" (plain jnp), "tpu" and
"gpu" (Pallas), and both with "_interpret", which run the kernel's Python anywhere, for tests.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

ORDER = {"tpu": ("tpu", "xla"), "gpu": ("gpu", "xla")}


def run(table: Mapping[str, Callable[..., Any]], implementation: str | None, *args, **kwargs):
  """Calls `table[implementation]`, or the first that does not refuse.

  Raises ValueError for a name that is not in the table. The choice is made while tracing, by
  `jax.default_backend()`: to compile for another platform, name the implementation.
  """
  if implementation is not None:
    if implementation not in table:
      raise ValueError(f"implementation={implementation!r}: choose one of {tuple(table)}")
    return table[implementation](*args, **kwargs)
  for name in ORDER.get(jax.default_backend(), ()):
    if name in table and name != "xla":
      try:
        return table[name](*args, **kwargs)
      except NotImplementedError:
        continue
  return table["xla"](*args, **kwargs)


def wants_kernel(implementation: str | None, sharding: jax.sharding.Sharding) -> bool:
  """Whether a kernel may run where `sharding` holds several devices: the caller then has to wrap
  the call in `jax.shard_map`, because no compiler splits a kernel."""
  if sharding.num_devices == 1:
    return False
  if implementation is None:
    return jax.default_backend() in ORDER
  return implementation not in ("reference", "xla")
