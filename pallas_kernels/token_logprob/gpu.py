"""Pallas kernels for GPU (Triton). A program keeps a block of tokens, or of the vocabulary for
d head, and passes the other by; a product runs over the width in pieces, as whole rows do not fit.

A sum [block, D] in float32 does not fit into registers either: a program adds to its own rows of
the output in memory, which no other program touches, so the order of additions is fixed. Where
blocks of tokens are few, the vocabulary is divided among `splits` programs and their parts joined.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.token_logprob import pieces
from pallas_kernels.token_logprob.pieces import LOW, TokenLogprob

PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100 or H200


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Tokens, vocabulary entries and width of one step of a product, and how Triton compiles it."""

  x: int = 128
  v: int = 128
  d: int = 64
  warps: int = 8
  stages: int = 3
  splits: int = 0  # parts of the vocabulary in forward and d hidden; 0: as many as fill the device

  def __post_init__(self):
    for name in ("x", "v", "d"):
      size = getattr(self, name)
      if size < 16 or size & (size - 1):
        raise ValueError(f"Blocks({name}={size}): must be a power of two, at least 16")
    if self.warps not in (1, 2, 4, 8, 16):
      raise ValueError(f"Blocks(warps={self.warps}): must be 1, 2, 4, 8 or 16")
    if self.stages < 1 or self.splits < 0:
      raise ValueError(f"Blocks(stages={self.stages}, splits={self.splits}): too small")

  def parts(self, tokens: int, vocab: int) -> int:
    programs = pl.cdiv(tokens, self.x)
    return self.splits or max(1, min(8, PROGRAMS // programs, pl.cdiv(vocab, self.v)))


# Reasoned, not tuned on a device: float32 products take three passes of the tensor cores.
HALF, FULL = Blocks(), Blocks(64, 64, 32, warps=4, stages=2)


def token_logprob(
  hidden, head, target, temperature, *, chunk, strided, blocks=None, interpret=False
) -> TokenLogprob:
  del chunk
  if strided:
    raise NotImplementedError("tokens split over devices: call the kernel inside shard_map")
  dtype = pieces.common_dtype(hidden, head)
  blocks = blocks or (HALF if dtype == jnp.bfloat16 else FULL)
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
  d_hidden = _d_hidden(hidden, head, rows, used, cold, blocks, interpret)
  d_head = _d_head(hidden, head, rows, used, cold, blocks, interpret)
  return d_hidden, d_head, None, jnp.zeros_like(cold)


_op.defvjp(_op_forward, _op_backward)


def _load(ref, rows, columns):
  """ref[rows, columns] with what lies outside put to 0."""
  mask = None
  for axis, (start, size) in enumerate((rows, columns)):
    if ref.shape[axis] % size:
      inside = start + jnp.arange(size, dtype=jnp.int32) < ref.shape[axis]
      inside = jnp.expand_dims(inside, 1 - axis)
      mask = inside if mask is None else mask & inside
  where = ref.at[pl.ds(*rows), pl.ds(*columns)]
  return plgpu.load(where) if mask is None else plgpu.load(where, mask=mask, other=0)


def _row(ref, index, rows):
  """[1, size]; tokens outside get 0."""
  inside = (rows[0] + jnp.arange(rows[1], dtype=jnp.int32) < ref.shape[1])[None]
  return plgpu.load(ref.at[pl.ds(index, 1), pl.ds(*rows)], mask=inside, other=0)


def _product(a, b, interpret):
  dtype = jnp.bfloat16 if a.dtype == b.dtype == jnp.bfloat16 else jnp.float32
  precision = None
  if dtype == jnp.float32 and not interpret:
    ways = jax.lax.DotAlgorithmPreset
    precision = ways.TF32_TF32_F32_X3 if pieces.exact() else ways.TF32_TF32_F32
  return jnp.dot(
    a.astype(dtype), b.astype(dtype), precision=precision, preferred_element_type=jnp.float32
  )


def _logits(left, rows, right, columns, cold, blocks, interpret):
  """left[rows] right[columns]^T / temperature, [rows, columns] in float32."""

  def step(k, total):
    width = k * blocks.d, blocks.d
    a, b = _load(left, rows, width), _load(right, columns, width)
    return total + _product(a, b.T, interpret)

  total = jnp.zeros((rows[1], columns[1]), jnp.float32)
  return jax.lax.fori_loop(0, pl.cdiv(left.shape[1], blocks.d), step, total) * cold[0]


def _add(out, lead, rows, dz, right, columns, steps, blocks, interpret):
  """out[lead, rows] += dz right[columns]; the rows belong to this program alone."""

  def step(k, _):
    width = k * blocks.d, blocks.d
    part = _product(dz, _load(right, columns, width), interpret)
    where = out.at[lead, pl.ds(*rows), pl.ds(*width)]
    inside = (rows[0] + jnp.arange(rows[1], dtype=jnp.int32) < out.shape[1])[:, None] & (
      width[0] + jnp.arange(width[1], dtype=jnp.int32) < out.shape[2]
    )[None]
    plgpu.store(where, plgpu.load(where, mask=inside, other=0) + part, mask=inside)
    return None

  jax.lax.fori_loop(0, steps, step, None)
  if not interpret:
    plgpu.debug_barrier()  # what a thread wrote another may read in the next step


def _clear(out, lead, rows, blocks):
  def step(k, _):
    width = k * blocks.d, blocks.d
    inside = (rows[0] + jnp.arange(rows[1], dtype=jnp.int32) < out.shape[1])[:, None] & (
      width[0] + jnp.arange(width[1], dtype=jnp.int32) < out.shape[2]
    )[None]
    zero = jnp.zeros((rows[1], width[1]), out.dtype)
    plgpu.store(out.at[lead, pl.ds(*rows), pl.ds(*width)], zero, mask=inside)
    return None

  jax.lax.fori_loop(0, pl.cdiv(out.shape[2], blocks.d), step, None)


def _forward_kernel(cold, target, hidden, head, out, *, blocks, per_part, interpret):
  i, part = pl.program_id(0), pl.program_id(1)
  tokens = i * blocks.x, blocks.x
  inside = tokens[0] + jnp.arange(blocks.x, dtype=jnp.int32) < target.shape[0]
  wanted = plgpu.load(target.at[pl.ds(*tokens)], mask=inside, other=0)

  def step(j, state):
    entries = (part * per_part + j) * blocks.v, blocks.v
    z = _logits(hidden, tokens, head, entries, cold, blocks, interpret)
    entry = entries[0] + jnp.arange(blocks.v, dtype=jnp.int32)
    z = jnp.where((entry < head.shape[0])[None], z, LOW)
    return pieces.update(state, z, entry[None] == wanted[:, None], 1)

  zero = jnp.zeros((blocks.x, 1), jnp.float32)
  state = jax.lax.fori_loop(0, per_part, step, (zero + LOW, zero, zero, zero))
  for row, value in enumerate(state):
    where = out.at[part, pl.ds(row, 1), pl.ds(*tokens)]
    plgpu.store(where, value.reshape(1, blocks.x), mask=inside[None])


def _call(kernel, grid, shape, name, hidden, head, products, blocks, interpret):
  (x, d), v = hidden.shape, head.shape[0]
  return pl.pallas_call(
    kernel,
    grid=grid,
    out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * x * v * d,
      transcendentals=x * v,
      bytes_accessed=hidden.size * hidden.dtype.itemsize + head.size * head.dtype.itemsize,
    ),
    compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
    interpret=interpret,
    name=name,
  )


def _forward(hidden, head, target, cold, blocks, interpret):
  x, v = hidden.shape[0], head.shape[0]
  parts = blocks.parts(x, v)
  kernel = functools.partial(
    _forward_kernel, blocks=blocks, per_part=pl.cdiv(pl.cdiv(v, blocks.v), parts),
    interpret=interpret,
  )  # fmt: skip
  call = _call(
    kernel, (pl.cdiv(x, blocks.x), parts), (parts, 4, x), "token_logprob_forward",
    hidden, head, 1, blocks, interpret,
  )  # fmt: skip
  return pieces.finish(call(cold, target.astype(jnp.int32), hidden, head))


def _d_hidden_kernel(used, cold, rows, hidden, head, out, *, blocks, per_part, interpret):
  i, part = pl.program_id(0), pl.program_id(1)
  tokens = i * blocks.x, blocks.x
  columns = [_row(rows, k, tokens).reshape(blocks.x, 1) for k in range(6)]
  steps = pl.cdiv(hidden.shape[1], blocks.d)
  _clear(out, part, tokens, blocks)

  def step(j, _):
    entries = (part * per_part + j) * blocks.v, blocks.v
    z = _logits(hidden, tokens, head, entries, cold, blocks, interpret)
    entry = entries[0] + jnp.arange(blocks.v, dtype=jnp.int32)
    dz = pieces.gradient(z, entry[None], *columns) * cold[0]
    dz = jnp.where((entry < head.shape[0])[None], dz, 0).astype(head.dtype)
    _add(out, part, tokens, dz, head, entries, steps, blocks, interpret)
    return None

  jax.lax.fori_loop(0, per_part * used[i], step, None)


def _d_hidden(hidden, head, rows, used, cold, blocks, interpret):
  (x, d), v = hidden.shape, head.shape[0]
  parts = blocks.parts(x, v)
  kernel = functools.partial(
    _d_hidden_kernel, blocks=blocks, per_part=pl.cdiv(pl.cdiv(v, blocks.v), parts),
    interpret=interpret,
  )  # fmt: skip
  call = _call(
    kernel, (pl.cdiv(x, blocks.x), parts), (parts, x, d), "token_logprob_d_hidden",
    hidden, head, 2, blocks, interpret,
  )  # fmt: skip
  out = call(pieces.used_blocks(used, blocks.x), cold, rows, hidden, head)
  return jnp.sum(out, axis=0).astype(hidden.dtype)


def _d_head_kernel(used, cold, rows, hidden, head, out, *, blocks, interpret):
  entries, lead = (pl.program_id(0) * blocks.v, blocks.v), pl.program_id(1)  # lead is 0
  entry = entries[0] + jnp.arange(blocks.v, dtype=jnp.int32)
  width = pl.cdiv(hidden.shape[1], blocks.d)
  _clear(out, lead, entries, blocks)

  def step(i, _):
    tokens = i * blocks.x, blocks.x
    z = _logits(head, entries, hidden, tokens, cold, blocks, interpret)
    columns = (_row(rows, k, tokens) for k in range(6))
    dz = pieces.gradient(z, entry[:, None], *columns) * cold[0]
    inside = tokens[0] + jnp.arange(blocks.x, dtype=jnp.int32) < hidden.shape[0]
    dz = jnp.where(inside[None], dz, 0).astype(hidden.dtype)
    _add(out, lead, entries, dz, hidden, tokens, width * used[i], blocks, interpret)
    return None

  jax.lax.fori_loop(0, pl.cdiv(hidden.shape[0], blocks.x), step, None)


def _d_head(hidden, head, rows, used, cold, blocks, interpret):
  v, d = head.shape
  kernel = functools.partial(_d_head_kernel, blocks=blocks, interpret=interpret)
  call = _call(
    kernel, (pl.cdiv(v, blocks.v), 1), (1, v, d), "token_logprob_d_head",
    hidden, head, 2, blocks, interpret,
  )  # fmt: skip
  out = call(pieces.used_blocks(used, blocks.x), cold, rows, hidden, head)
  return out[0].astype(head.dtype)
