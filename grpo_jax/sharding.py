"""Where every array lives: the one file that knows of meshes.

Axes: data (replicas of the parameters), fsdp (parameters and optimizer state split, gathered where
they are used), tensor (heads, MLP columns and vocabulary split). Rows of a batch are split over
data and fsdp together. Axis types are Auto: jit propagates the rest and inserts the collectives.
"""

import math
import pickle
import re
from collections.abc import Callable
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
    raise UserError(f"mesh.{min(set(sizes) - set(AXES))}: unknown; axes are {', '.join(AXES)}")
  for axis, size in sizes.items():
    if not isinstance(size, int) or (size < 1 and size != -1):
      raise UserError(f"mesh.{axis}={size!r}: must be a whole number above 0, or -1 for the rest")
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
  return "/".join(
    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path
  )


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
  """Drops the axes that do not divide their dimension, and the rule for arrays of another rank."""
  if len(spec) > len(shape):
    return P()
  return P(
    *(a if a and s % mesh.shape[a] == 0 else None for a, s in zip(spec, shape, strict=False))
  )


def param_specs(tree: Any, mesh: Mesh) -> Any:
  """NamedSharding for each array of a pytree whose paths end like parameter names.

  Works for parameters, optimizer state (moments carry the parameters' paths) and a whole
  TrainState, whose method_state is replicated.
  """

  def spec_of(key_path, leaf):
    path = _path(key_path)
    if path.startswith("method_state"):
      return replicated(mesh)
    spec = next(s for rule, s in PARAM_RULES if re.search(rule, path))
    return NamedSharding(mesh, _fit(spec, tuple(leaf.shape), mesh))

  return jax.tree_util.tree_map_with_path(spec_of, tree)


def rows(mesh: Mesh) -> NamedSharding:
  """Leading dimension (rows or prompts) over data and fsdp."""
  return NamedSharding(mesh, P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def put(tree: Any, shardings: Any) -> Any:
  """Host arrays to their place; on several hosts each holds the whole host array.

  Arrays of jax are moved: on several hosts they must be global already, or equal on every host.
  """

  def place(x, sharding):
    if jax.process_count() == 1 or (isinstance(x, jax.Array) and not x.is_fully_addressable):
      return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = place(jax.random.key_data(x), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  if isinstance(shardings, NamedSharding):
    return jax.tree.map(lambda x: place(x, shardings), tree)
  return jax.tree.map(place, tree, shardings)


def to_host(tree: Any) -> Any:
  """Device arrays as numpy on every host, whole."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)


# ---- what hosts tell each other ------------------------------------------------------------------


def together(work: Callable[[], Any]) -> list[Any]:
  """What `work` returned on every process, in their order, on every process.

  Values must be picklable. If it raised a UserError anywhere, every process raises the first one:
  a process that went on alone would wait for the others without end.
  """
  if jax.process_count() == 1:
    return [work()]
  from jax.experimental import multihost_utils

  try:
    mine = ("value", work())
  except UserError as error:
    mine = ("error", str(error))
  data = np.frombuffer(pickle.dumps(mine), np.uint8)
  sizes = multihost_utils.process_allgather(np.asarray([data.size], np.int32)).reshape(-1)
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded)
  found = [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
  for kind, value in found:
    if kind == "error":
      raise UserError(value)
  return [value for _, value in found]


def from_first(work: Callable[[], Any]) -> Any:
  """What `work` returned on process 0, on every process; the others do not call it."""
  return together(lambda: work() if jax.process_index() == 0 else None)[0]
