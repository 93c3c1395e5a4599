"""Where every array lives: the one file that knows of meshes.

Axes: data (replicas of the parameters), fsdp (parameters and optimizer state split, gathered where
they are used), tensor (heads, MLP columns and vocabulary split). Rows of a batch are split over
data and fsdp together. Axis types are Auto: jit propagates the rest and inserts the collectives.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")

# The first rule whose expression is found in the parameter's path. Stacked layers lead with L.
PARAM_RULES: tuple[tuple[str, P], ...] = (
  (r"layers/(q|k|v|gate|up)$", P(None, "fsdp", "tensor")),
  (r"layers/(o|down)$", P(None, "tensor", "fsdp")),
  (r"layers/(q|k|v)_bias$", P(None, "tensor")),
  (r"(^|/)(embed|head)$", P("tensor", "fsdp")),
  (r"", P()),
)


def make_mesh(shape: dict[str, int] | None = None, devices=None) -> Mesh:
  """A mesh (data, fsdp, tensor); one axis may be -1 and takes the devices that are left.

  Raises UserError if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = {"data": -1, "fsdp": 1, "tensor": 1} | dict(shape or {})
  if set(sizes) != set(AXES):
    raise UserError(f"mesh={sorted(set(sizes) - set(AXES))}: axes are {', '.join(AXES)}")
  free = [a for a in AXES if sizes[a] == -1]
  fixed = math.prod(s for s in sizes.values() if s != -1)
  if len(free) > 1 or len(devices) % fixed or (not free and fixed != len(devices)):
    raise UserError(
      f"mesh={sizes} does not fit {len(devices)} devices: the sizes must multiply to that number "
      "(one axis may be -1)"
    )
  if free:
    sizes[free[0]] = len(devices) // fixed
  grid = np.asarray(devices).reshape([sizes[a] for a in AXES])
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def row_shards(mesh: Mesh) -> int:
  return mesh.shape["data"] * mesh.shape["fsdp"]


def _path(key_path) -> str:
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path)


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
  """Drops the axes that do not divide their dimension, and the rule for arrays of another rank."""
  if len(spec) > len(shape):
    return P()
  return P(*(a if a and s % mesh.shape[a] == 0 else None for a, s in zip(spec, shape, strict=False)))


def param_specs(tree: Any, mesh: Mesh) -> Any:
  """NamedSharding for each array of a pytree whose paths end like parameter names.

  Works for parameters and for optimizer state alike (moments carry the parameters' paths).
  """

  def spec_of(key_path, leaf):
    path = _path(key_path)
    spec = next(s for rule, s in PARAM_RULES if re.search(rule, path))
    return NamedSharding(mesh, _fit(spec, tuple(leaf.shape), mesh))

  return jax.tree_util.tree_map_with_path(spec_of, tree)


def rows(mesh: Mesh) -> NamedSharding:
  """Leading dimension (rows or prompts) over data and fsdp."""
  return NamedSharding(mesh, P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def put(tree: Any, shardings: Any) -> Any:
  """Host or device arrays to their place; on several hosts each holds the whole host array."""

  def place(x, sharding):
    if jax.process_count() == 1 or isinstance(x, jax.Array):
      return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  if isinstance(shardings, NamedSharding):
    return jax.tree.map(lambda x: place(x, shardings), tree)
  return jax.tree.map(place, tree, shardings)


def fetch(tree: Any) -> Any:
  """Device arrays as numpy on every host, whole."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
