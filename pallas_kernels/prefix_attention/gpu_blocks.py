"""Block sizes of the GPU kernels."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu


@dataclasses.dataclass(frozen=True)
class Tile:
  """Rows and keys of one step, and how the compiler spreads it: powers of two."""

  rows: int
  keys: int
  warps: int = 4
  stages: int = 2

  def __post_init__(self):
    for name in ("rows", "keys"):
      size = getattr(self, name)
      if size < 16 or size & (size - 1):
        raise ValueError(f"{name}={size}: must be a power of two, at least 16")
    if self.warps not in (1, 2, 4, 8, 16):
      raise ValueError(f"warps={self.warps}: must be 1, 2, 4, 8 or 16")
    if self.stages < 1:
      raise ValueError(f"stages={self.stages}: must be at least 1")

  @property
  def params(self) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=self.warps, num_stages=self.stages)


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Tiles of the three kernels of training and the two of decoding; `own` takes the rows of a slot,
  however many its tile says."""

  forward: Tile
  dq: Tile
  dkv: Tile
  prefix: Tile
  own: Tile

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if not isinstance(getattr(self, field.name), Tile):
        raise ValueError(f"{field.name}: must be a Tile")


def uniform(size: int) -> Blocks:
  """The same small tile everywhere, for tests."""
  return Blocks(*(Tile(size, size) for _ in dataclasses.fields(Blocks)))


# By bytes of a number and head size. Reasoned, and compiled for an H200: registers spill only in
# dkv of size 256 (36 bytes). Not tuned, since no device was at hand; every kind gets these.
TABLE = {
  (2, 32): Blocks(
    Tile(64, 64, 4, 3),
    Tile(64, 64, 4, 2),
    Tile(64, 64, 4, 2),
    Tile(64, 64, 4, 3),
    Tile(16, 64, 4, 3),
  ),
  (2, 64): Blocks(
    Tile(128, 64, 8, 3),
    Tile(128, 64, 8, 2),
    Tile(64, 128, 8, 2),
    Tile(64, 64, 4, 3),
    Tile(16, 64, 4, 3),
  ),
  (2, 128): Blocks(
    Tile(128, 64, 8, 3),
    Tile(128, 64, 8, 2),
    Tile(32, 128, 8, 3),
    Tile(64, 64, 4, 3),
    Tile(16, 64, 4, 3),
  ),
  (2, 256): Blocks(
    Tile(64, 32, 8, 2),
    Tile(64, 32, 8, 2),
    Tile(16, 64, 8, 2),
    Tile(32, 32, 4, 2),
    Tile(16, 32, 4, 2),
  ),
  (4, 32): Blocks(Tile(32, 32), Tile(32, 32), Tile(32, 16), Tile(32, 32), Tile(16, 32)),
  (4, 64): Blocks(Tile(32, 32), Tile(32, 32), Tile(32, 32, 8), Tile(32, 32), Tile(16, 32)),
  (4, 128): Blocks(Tile(32, 32, 8), Tile(32, 16, 8), Tile(32, 16, 8), Tile(32, 32), Tile(16, 32)),
}


def choose(blocks: Any, dtype: Any, head_dim: int) -> Blocks:
  if blocks is None:
    return TABLE.get((jnp.dtype(dtype).itemsize, head_dim), TABLE[4, 64])
  if not isinstance(blocks, Blocks):
    raise ValueError(f"blocks: must be gpu.Blocks, not {type(blocks).__name__}")
  return blocks
