"""Pallas kernels for TPU: blocks of rows; a group, or the tokens of a row, run along the lanes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.group_advantage import reference, statistics
from pallas_kernels.group_advantage.recurrence import FILL, LINEAR, advance
from pallas_kernels.group_advantage.statistics import Options

MAX_GROUP = 1024  # members of a group as lanes of one block


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Rows of a block and, for scans and ragged groups, columns. Reasoned, not tuned on a device."""

  rows: int = 64
  columns: int = 512

  def __post_init__(self):
    if self.rows <= 0 or self.rows % 8:
      raise ValueError(f"Blocks(rows={self.rows}): must be a positive multiple of 8")
    if self.columns < 128 or self.columns & (self.columns - 1):
      raise ValueError(f"Blocks(columns={self.columns}): must be a power of two, at least 128")


def _pad(x, rows: int, columns: int, value=0):
  sizes = ((0, -x.shape[0] % rows), (0, -x.shape[1] % columns))
  return jnp.pad(x, sizes, constant_values=value)


def _cost(*arrays, flops: int):
  size = sum(x.size for x in arrays)
  return pl.CostEstimate(flops=flops * size, bytes_accessed=4 * size, transcendentals=0)


def _group_kernel(batch, reward, alive, out, *, options):
  on = alive[...] > 0
  x = jnp.where(on, reward[...], 0)
  state = statistics.count(statistics.begin((x.shape[0], 1)), x, on)
  need, second = statistics.needs(options), None
  if need == "squares":
    second = statistics.squares(state, x, on)
  elif need == "wins":
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)

    def against(j, total):  # member j of each group against all members
      pick = lambda a: jnp.sum(jnp.where(lane == j, a, 0), axis=1, keepdims=True)
      sign = jnp.where(x > pick(x), 1.0, jnp.where(x < pick(x), -1.0, 0.0))
      return total + sign * pick(alive[...])

    second = jax.lax.fori_loop(0, x.shape[1], against, jnp.zeros_like(x))
  out[...] = statistics.finish(x, on, state, second, batch[0], options)


def group_advantage(reward, alive, *, blocks=Blocks(), interpret=False, **options):
  options = Options(**options)
  statistics.check(options)
  n, g = reward.shape
  if g > MAX_GROUP:
    raise NotImplementedError(f"groups of {g}: more than {MAX_GROUP} members")
  reward = jnp.where(alive, reward, 0).astype(jnp.float32)
  batch = reference.batch_deviation(reward, alive, options.ddof) if options.batch else None
  batch = jnp.zeros(1) if batch is None else batch.reshape(1)
  args = _pad(reward, blocks.rows, 1), _pad(alive.astype(jnp.float32), blocks.rows, 1)
  spec = pl.BlockSpec((blocks.rows, g), lambda i: (i, 0))
  out = pl.pallas_call(
    functools.partial(_group_kernel, options=options),
    grid=(args[0].shape[0] // blocks.rows,),
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), spec, spec],
    out_specs=spec,
    out_shape=jax.ShapeDtypeStruct(args[0].shape, jnp.float32),
    cost_estimate=_cost(*args, flops=g if options.kind == "ranks" else 8),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    interpret=interpret,
    name="group_advantage",
  )(batch, *args)
  return out[:n]


def _ragged_kernel(batch, own, own_id, reward, group, out, *, columns, options):
  """Members are found by their id: a block of rollouts against all, `columns` at a time."""
  size = own.shape[0]

  def piece(c):
    at = pl.ds(pl.multiple_of(c * columns, columns), columns)
    return jnp.broadcast_to(reward[:, at], (size, columns)), own_id[...] == group[:, at]

  def sweep(step, start):
    return jax.lax.fori_loop(0, reward.shape[1] // columns, step, start)

  state = sweep(lambda c, s: statistics.count(s, *piece(c)), statistics.begin((size, 1)))
  need, second = statistics.needs(options), jnp.zeros((size, 1), jnp.float32)
  if need == "squares":
    second = sweep(lambda c, s: s + statistics.squares(state, *piece(c)), second)
  elif need == "wins":
    second = sweep(lambda c, s: s + statistics.wins(own[...], *piece(c)), second)
  alive = own_id[...] >= 0
  out[...] = statistics.finish(own[...], alive, state, second, batch[0], options)


def ragged_advantage(
  reward, group, *, num_groups, blocks=Blocks(), interpret=False, **options
):  # fmt: skip
  options = Options(**options)
  statistics.check(options)
  alive = (group >= 0) & (group < num_groups)
  reward = jnp.where(alive, reward, 0).astype(jnp.float32)[None]
  batch = reference.batch_deviation(reward, alive[None], options.ddof) if options.batch else None
  batch = jnp.zeros(1) if batch is None else batch.reshape(1)
  columns = max(blocks.columns, blocks.rows)
  reward = _pad(reward, 1, columns)
  group = _pad(jnp.where(alive, group, -1).astype(jnp.int32)[None], 1, columns, -1)
  size = reward.shape[1]
  if columns % blocks.rows:
    raise ValueError(f"{blocks}: columns must be a multiple of rows")
  down, along = pl.BlockSpec((blocks.rows, 1), lambda i: (i, 0)), pl.BlockSpec((1, size))
  out = pl.pallas_call(
    functools.partial(_ragged_kernel, columns=columns, options=options),
    grid=(size // blocks.rows,),
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), down, down, along, along],
    out_specs=down,
    out_shape=jax.ShapeDtypeStruct((size, 1), jnp.float32),
    cost_estimate=_cost(reward, flops=16 * size),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    interpret=interpret,
    name="ragged_advantage",
  )(batch, reward.T, group.T, reward, group)
  return out[: alive.shape[0], 0]


def _exclusive(operator, items, carry):
  """Doubling: after step k a column has joined 2^k columns to its right; then a shift by one."""
  width = items[0].shape[1]
  column = jax.lax.broadcasted_iota(jnp.int32, items[0].shape, 1)

  def shifted(items, by):
    return tuple(
      jnp.where(column < width - by, pltpu.roll(x, width - by, 1), neutral)
      for x, neutral in zip(items, operator.neutral, strict=True)
    )

  by = 1
  while by < width:
    items = operator.combine(items, shifted(items, by))
    by *= 2
  wide = tuple(jnp.broadcast_to(c, x.shape) for c, x in zip(carry, items, strict=True))
  return operator.combine(shifted(items, 1), wide)


def _scan_kernel(*refs, names, tokens):
  *arrays, out, linear, fill, fill_id = refs
  read = dict(zip(names, arrays, strict=True))
  j, width = pl.num_programs(1) - 1 - pl.program_id(1), out.shape[1]

  @pl.when(pl.program_id(1) == 0)
  def _():
    for ref in (linear, fill, fill_id):
      ref[...] = jnp.zeros_like(ref)

  column = jax.lax.broadcasted_iota(jnp.int32, out.shape, 1) + j * width
  on = jnp.where((read.pop("mask")[...] > 0) & (column < tokens), 1.0, 0.0)
  carry = {
    FILL: (fill[:, 0:1], fill[:, 1:2], fill_id[:, 0:1]),
    LINEAR: (jnp.zeros_like(linear[:, 0:1]), linear[:, 0:1]),
  }
  get = lambda name: read[name][...] if name in read else None
  out[...], joined = advance(
    lambda operator, items: _exclusive(operator, items, carry[operator]),
    get("reward"), on, get("decay"), get("value"), get("last"), get("gamma"), get("segment"),
  )  # fmt: skip
  first = lambda items: tuple(x[:, 0:1] for x in items)
  filled, composed = (
    operator.combine(first(items), first(after))
    for operator, (items, after) in zip((FILL, LINEAR), joined, strict=True)
  )
  fill[:, 0:1], fill[:, 1:2], fill_id[:, 0:1] = filled
  linear[:, 0:1] = composed[1]


def backward_scan(
  reward, mask, decay, *, value, last, gamma, segment, blocks=Blocks(), interpret=False
):  # fmt: skip
  r, t = reward.shape
  width = min(blocks.columns, pl.next_power_of_2(max(t, 128)))
  grid = pl.cdiv(r, blocks.rows), pl.cdiv(t, width)
  given = {"reward": reward, "mask": mask, "decay": decay, "value": value, "last": last,
           "gamma": gamma, "segment": segment}  # fmt: skip
  given = {name: x for name, x in given.items() if x is not None}
  wide = pl.BlockSpec((blocks.rows, width), lambda i, j: (i, grid[1] - 1 - j))
  thin = pl.BlockSpec((blocks.rows, 1), lambda i, j: (i, 0))
  carry = pltpu.VMEM((blocks.rows, 128), jnp.float32)
  return pl.pallas_call(
    functools.partial(_scan_kernel, names=tuple(given), tokens=t),
    grid=grid,
    in_specs=[wide if x.shape == (r, t) and t > 1 else thin for x in given.values()],
    out_specs=wide,
    out_shape=jax.ShapeDtypeStruct((r, t), jnp.float32),
    scratch_shapes=[carry, carry, pltpu.VMEM((blocks.rows, 128), jnp.int32)],
    cost_estimate=_cost(reward, *given.values(), flops=64),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    interpret=interpret,
    name="backward_scan",
  )(*given.values())
