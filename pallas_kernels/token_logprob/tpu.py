"""Pallas kernels for TPU. Forward and d head have tokens along the lanes, so that a token's numbers
are rows of a [4, X] or [8, X] table; d hidden has the vocabulary there and reads them as columns.

Forward and d hidden keep a block of hidden states and pass the output matrix by; d head keeps a
block of the output matrix and passes the states by. The kept side decides how often the other is
read: a product of x kept rows does x operations for each 2-byte number that is read.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.token_logprob import pieces
from pallas_kernels.token_logprob.pieces import LOW, TokenLogprob

# Fast memory of a core by `device_kind`, MiB. An unknown kind gets the smallest.
VMEM = {"TPU v4": 16, "TPU v5 lite": 128, "TPU v5e": 128, "TPU v5": 64, "TPU v5p": 64,
        "TPU v6 lite": 128, "TPU v6e": 128}  # fmt: skip
SIZES = ((1024, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128))  # kept, passed


@dataclasses.dataclass(frozen=True)
class Tile:
  """Tokens and vocabulary entries of one block."""

  x: int
  v: int

  def __post_init__(self):
    if self.x <= 0 or self.x % 128 or self.v <= 0 or self.v % 128:
      raise ValueError(f"Tile(x={self.x}, v={self.v}): both must be positive multiples of 128")


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Tiles of the three kernels, and the fast memory that they may use."""

  forward: Tile
  d_hidden: Tile
  d_head: Tile
  vmem: int = 16 * 2**20

  def __post_init__(self):
    if self.vmem < 2**20:
      raise ValueError(f"Blocks(vmem={self.vmem}): bytes, at least 2^20")


def choose(kind: str, width: int, hidden: int, head: int, full: bool = False) -> Blocks:
  """The largest tiles that fit; reasoned from sizes, not tuned on a device.

  hidden, head: bytes of a number. Inputs and outputs are held twice, logits some four times, and
  both factors of a product in full float32 (`full`) once more in three parts.
  """
  vmem = VMEM.get(kind, 16) * 2**20
  width = -(-width // 128) * 128

  def largest(kept: int, passed: int):
    for big, small in SIZES:
      product = 16 * big * small + (12 * (big + small) * width if full else 0)
      if (big * kept + small * passed) * width + product < vmem * 7 // 8:
        return big, small
    raise NotImplementedError(f"width {width}: a block of 128 does not fit into {vmem} bytes")

  forward = largest(2 * hidden, 2 * head)
  d_hidden = largest(4 * hidden + 4, 3 * head)
  d_head = largest(4 * head + 4, 3 * hidden)
  return Blocks(Tile(*forward), Tile(*d_hidden), Tile(*d_head[::-1]), vmem)


def token_logprob(
  hidden, head, target, temperature, *, chunk, strided, blocks=None, interpret=False
) -> TokenLogprob:
  del chunk
  if strided:
    raise NotImplementedError("tokens split over devices: call the kernel inside shard_map")
  full = pieces.common_dtype(hidden, head) == jnp.float32 and pieces.exact()
  if blocks is None:
    kind = jax.devices()[0].device_kind if jax.default_backend() == "tpu" else ""
    blocks = choose(kind, hidden.shape[1], hidden.dtype.itemsize, head.dtype.itemsize, full)
  return _op(hidden, head, target, jnp.reshape(1 / temperature, (1,)), blocks, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _op(hidden, head, target, cold, blocks, interpret):
  return _forward(hidden, head, target, cold, blocks, interpret)[0]


def _op_forward(hidden, head, target, cold, blocks, interpret):
  out, saved = _forward(hidden, head, target, cold, blocks, interpret)
  return out, (hidden, head, target, cold, saved)


def _op_backward(blocks, interpret, saved, cotangent):
  hidden, head, target, cold, kept = saved
  rows, used = pieces.weights(target, kept, cotangent)
  rows = jnp.pad(rows, ((0, 2), (0, 0)))
  d_hidden = _d_hidden(hidden, head, rows, used, cold, blocks, interpret)
  d_head = _d_head(hidden, head, rows, used, cold, blocks, interpret)
  return d_hidden, d_head, None, jnp.zeros_like(cold)


_op.defvjp(_op_forward, _op_backward)


def _product(a, b, dims):
  dtype = jnp.bfloat16 if a.dtype == b.dtype == jnp.bfloat16 else jnp.float32
  full = dtype == jnp.float32 and pieces.exact()
  precision = jax.lax.Precision.HIGHEST if full else jax.lax.Precision.DEFAULT
  return jax.lax.dot_general(
    a.astype(dtype), b.astype(dtype), (dims, ((), ())),
    precision=precision, preferred_element_type=jnp.float32,
  )  # fmt: skip


def _along(shape, axis: int, block, size: int):
  """The global index along `axis` of the entries of a block."""
  return jax.lax.broadcasted_iota(jnp.int32, shape, axis) + block * size


def _only(x, count: int, block, size: int):
  """x [size, D] with the rows beyond `count`, which hold anything, put to 0."""
  return jnp.where(_along(x.shape, 0, block, size) < count, x, 0) if count % size else x


def _cost(hidden, head, products: int, reads: int):
  (x, d), v = hidden.shape, head.shape[0]
  return pl.CostEstimate(
    flops=2 * products * x * v * d,
    transcendentals=x * v,
    bytes_accessed=hidden.size * hidden.dtype.itemsize + reads * head.size * head.dtype.itemsize,
  )


def _params(blocks):
  return pltpu.CompilerParams(
    dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=blocks.vmem
  )


def _forward_kernel(cold, target, hidden, head, out, *, vocab):
  j = pl.program_id(1)

  @pl.when(j == 0)
  def _():
    first = jax.lax.broadcasted_iota(jnp.int32, out.shape, 0) == 0
    out[...] = jnp.where(first, LOW, 0.0).astype(jnp.float32)

  z = _product(head[...], hidden[...], ((1,), (1,))) * cold[0]  # [v, x]
  entry = _along(z.shape, 0, j, z.shape[0])
  if vocab % z.shape[0]:
    z = jnp.where(entry < vocab, z, LOW)
  now = pieces.update((out[0:1], out[1:2], out[2:3], out[3:4]), z, entry == target[...], 0)
  for row, value in enumerate(now):
    out[row : row + 1] = value


def _forward(hidden, head, target, cold, blocks, interpret):
  (x, d), v, tile = hidden.shape, head.shape[0], blocks.forward
  grid = pl.cdiv(x, tile.x), pl.cdiv(v, tile.v)
  out = pl.pallas_call(
    functools.partial(_forward_kernel, vocab=v),
    grid=grid,
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      pl.BlockSpec((1, tile.x), lambda i, j: (0, i)),
      pl.BlockSpec((tile.x, d), lambda i, j: (i, 0)),
      pl.BlockSpec((tile.v, d), lambda i, j: (j, 0)),
    ],
    out_specs=pl.BlockSpec((4, tile.x), lambda i, j: (0, i)),
    out_shape=jax.ShapeDtypeStruct((4, x), jnp.float32),
    cost_estimate=_cost(hidden, head, 1, grid[0]),
    compiler_params=_params(blocks),
    interpret=interpret,
    name="token_logprob_forward",
  )(cold, target.astype(jnp.int32)[None], hidden, head)
  return pieces.finish(out[None])


def _d_hidden_kernel(used, cold, columns, hidden, head, out, total, *, vocab):
  i, j = pl.program_id(0), pl.program_id(1)

  @pl.when(j == 0)
  def _():
    total[...] = jnp.zeros_like(total)

  @pl.when(used[i] != 0)
  def _():
    w = _only(head[...], vocab, j, head.shape[0])
    z = _product(hidden[...], w, ((1,), (1,))) * cold[0]  # [x, v]
    entry = _along(z.shape, 1, j, z.shape[1])
    dz = pieces.gradient(z, entry, *(columns[:, k : k + 1] for k in range(6)))
    if vocab % z.shape[1]:
      dz = jnp.where(entry < vocab, dz, 0)
    total[...] += _product(dz.astype(w.dtype), w, ((1,), (0,)))

  @pl.when(j == pl.num_programs(1) - 1)
  def _():
    out[...] = (total[...] * cold[0]).astype(out.dtype)


def _d_hidden(hidden, head, rows, used, cold, blocks, interpret):
  (x, d), v, tile = hidden.shape, head.shape[0], blocks.d_hidden
  grid = pl.cdiv(x, tile.x), pl.cdiv(v, tile.v)
  return pl.pallas_call(
    functools.partial(_d_hidden_kernel, vocab=v),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=grid,
      in_specs=[
        pl.BlockSpec(memory_space=pltpu.SMEM),
        pl.BlockSpec((tile.x, 8), lambda i, j, used: (i, 0)),
        pl.BlockSpec((tile.x, d), lambda i, j, used: (i, 0)),
        # A skipped block of tokens stays at one block of the matrix: nothing is read for it.
        pl.BlockSpec((tile.v, d), lambda i, j, used: (j * used[i], 0)),
      ],
      out_specs=pl.BlockSpec((tile.x, d), lambda i, j, used: (i, 0)),
      scratch_shapes=[pltpu.VMEM((tile.x, d), jnp.float32)],
    ),
    out_shape=jax.ShapeDtypeStruct((x, d), hidden.dtype),
    cost_estimate=_cost(hidden, head, 2, grid[0]),
    compiler_params=_params(blocks),
    interpret=interpret,
    name="token_logprob_d_hidden",
  )(pieces.used_blocks(used, tile.x), cold, rows.T, hidden, head)


def _d_head_kernel(used, cold, rows, hidden, head, out, total, *, tokens):
  j, i = pl.program_id(0), pl.program_id(1)

  @pl.when(i == 0)
  def _():
    total[...] = jnp.zeros_like(total)

  @pl.when(used[i] != 0)
  def _():
    h = _only(hidden[...], tokens, i, hidden.shape[0])
    z = _product(head[...], h, ((1,), (1,))) * cold[0]  # [v, x]
    entry = _along(z.shape, 0, j, z.shape[0])
    dz = pieces.gradient(z, entry, *(rows[k : k + 1] for k in range(6)))
    if tokens % z.shape[1]:
      dz = jnp.where(_along(z.shape, 1, i, z.shape[1]) < tokens, dz, 0)
    total[...] += _product(dz.astype(h.dtype), h, ((1,), (0,)))

  @pl.when(i == pl.num_programs(1) - 1)
  def _():
    out[...] = (total[...] * cold[0]).astype(out.dtype)


def _d_head(hidden, head, rows, used, cold, blocks, interpret):
  (x, d), v, tile = hidden.shape, head.shape[0], blocks.d_head
  grid = pl.cdiv(v, tile.v), pl.cdiv(x, tile.x)
  return pl.pallas_call(
    functools.partial(_d_head_kernel, tokens=x),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=grid,
      in_specs=[
        pl.BlockSpec(memory_space=pltpu.SMEM),
        pl.BlockSpec((8, tile.x), lambda j, i, used: (0, i)),
        pl.BlockSpec((tile.x, d), lambda j, i, used: (i, 0)),
        pl.BlockSpec((tile.v, d), lambda j, i, used: (j, 0)),
      ],
      out_specs=pl.BlockSpec((tile.v, d), lambda j, i, used: (j, 0)),
      scratch_shapes=[pltpu.VMEM((tile.v, d), jnp.float32)],
    ),
    out_shape=jax.ShapeDtypeStruct((v, d), head.dtype),
    cost_estimate=_cost(hidden, head, 2, 2),
    compiler_params=_params(blocks),
    interpret=interpret,
    name="token_logprob_d_head",
  )(pieces.used_blocks(used, tile.x), cold, rows, hidden, head)
