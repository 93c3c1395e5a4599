"""Pallas kernels for GPU (Triton): a program for a few groups, or for a few rows of a scan."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.group_advantage import reference, statistics
from pallas_kernels.group_advantage.recurrence import FILL, LINEAR, advance
from pallas_kernels.group_advantage.statistics import Options

MAX_GROUP = 1024  # members of a group in one block


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Rows of a program and, for scans and ragged groups, columns of a step. Reasoned, not tuned."""

  rows: int = 4
  columns: int = 128
  warps: int = 4

  def __post_init__(self):
    for name in ("rows", "columns"):
      size = getattr(self, name)
      if size < 1 or size & (size - 1):
        raise ValueError(f"Blocks({name}={size}): must be a power of two")
    if self.warps not in (1, 2, 4, 8, 16):
      raise ValueError(f"Blocks(warps={self.warps}): must be 1, 2, 4, 8 or 16")


def _pad(x, rows: int, columns: int, value=0):
  sizes = ((0, -x.shape[0] % rows), (0, -x.shape[1] % columns))
  return jnp.pad(x, sizes, constant_values=value)


def _call(kernel, grid, shape, size, name, blocks, interpret, **specs):
  return pl.pallas_call(
    kernel,
    grid=grid,
    out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
    cost_estimate=pl.CostEstimate(flops=16 * size, bytes_accessed=16 * size, transcendentals=0),
    compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=1),
    interpret=interpret,
    name=name,
    **specs,
  )


def _group_kernel(batch, reward, alive, out, *, options):
  flag = alive[...]
  on = flag > 0
  x = jnp.where(on, reward[...], 0)
  state = statistics.count(statistics.begin((x.shape[0], 1)), x, on)
  need, second = statistics.needs(options), jnp.zeros((x.shape[0], 1), jnp.float32)
  if need == "squares":
    second = statistics.squares(state, x, on)
  elif need == "wins":

    def against(j, total):  # member j of each group against all members
      other, counts = reward[:, pl.ds(j, 1)], alive[:, pl.ds(j, 1)]
      other = jnp.where(counts > 0, other, 0)
      sign = jnp.where(x > other, 1.0, jnp.where(x < other, -1.0, 0.0))
      return total + sign * counts

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
  width = pl.next_power_of_2(g)
  args = (_pad(x, blocks.rows, width) for x in (reward, alive.astype(jnp.float32)))
  rows = n + -n % blocks.rows
  spec = pl.BlockSpec((blocks.rows, width), lambda i: (i, 0))
  out = _call(
    functools.partial(_group_kernel, options=options), (rows // blocks.rows,), (rows, width),
    rows * width, "group_advantage", blocks, interpret,
    in_specs=[pl.BlockSpec((1,), lambda i: (0,)), spec, spec], out_specs=spec,
  )(batch, *args)  # fmt: skip
  return out[:n, :g]


def _ragged_kernel(batch, reward, group, out, *, blocks, options):
  """Members are found by their id: a block of rollouts against all, `columns` at a time."""
  at = pl.ds(pl.program_id(0) * blocks.rows, blocks.rows)
  own, own_id = reward[at][:, None], group[at][:, None]
  shape = blocks.rows, blocks.columns

  def piece(c):
    at = pl.ds(c * blocks.columns, blocks.columns)
    return jnp.broadcast_to(reward[at][None], shape), own_id == group[at][None]

  def sweep(step, start):
    return jax.lax.fori_loop(0, reward.shape[0] // blocks.columns, step, start)

  begin = statistics.begin((blocks.rows, 1))
  state = sweep(lambda c, s: statistics.count(s, *piece(c)), begin)
  need, second = statistics.needs(options), begin[0]
  if need == "squares":
    second = sweep(lambda c, s: s + statistics.squares(state, *piece(c)), second)
  elif need == "wins":
    second = sweep(lambda c, s: s + statistics.wins(own, *piece(c)), second)
  adv = statistics.finish(own, own_id >= 0, state, second, batch[0], options)
  out[at] = adv.reshape(blocks.rows)


def ragged_advantage(
  reward, group, *, num_groups, blocks=Blocks(rows=16), interpret=False, **options
):  # fmt: skip
  options = Options(**options)
  statistics.check(options)
  alive = (group >= 0) & (group < num_groups)
  reward = jnp.where(alive, reward, 0).astype(jnp.float32)[None]
  batch = reference.batch_deviation(reward, alive[None], options.ddof) if options.batch else None
  batch = jnp.zeros(1) if batch is None else batch.reshape(1)
  unit = max(blocks.rows, blocks.columns)
  group = _pad(jnp.where(alive, group, -1).astype(jnp.int32)[None], 1, unit, -1)[0]
  reward = _pad(reward, 1, unit)[0]
  size = reward.shape[0]
  out = _call(
    functools.partial(_ragged_kernel, blocks=blocks, options=options), (size // blocks.rows,),
    (size,), size * size, "ragged_advantage", blocks, interpret,
  )(batch, reward, group)  # fmt: skip
  return out[: alive.shape[0]]


def _pairs(x):
  left, right = jax.lax.split(x.reshape(x.shape[0], -1, 2), (1, 1), axis=2)
  return left.reshape(x.shape[0], -1), right.reshape(x.shape[0], -1)


def _exclusive(operator, items, carry):
  """What follows each column: for a pair it is what follows the pair, joined for the left one with
  the right one. There is no shift of columns in Triton, but pairs can be split and joined."""
  if items[0].shape[1] == 1:
    return carry
  left, right = zip(*map(_pairs, items), strict=True)
  after = _exclusive(operator, operator.combine(left, right), carry)
  both = zip(operator.combine(right, after), after, strict=True)
  return tuple(jnp.stack(pair, axis=2).reshape(items[0].shape) for pair in both)


def _scan_kernel(*refs, names, blocks, tokens, rows):
  *arrays, out = refs
  read = dict(zip(names, arrays, strict=True))
  first = pl.program_id(0) * blocks.rows
  row = (first + jnp.arange(blocks.rows, dtype=jnp.int32) < rows)[:, None]
  steps = pl.cdiv(tokens, blocks.columns)
  column = jnp.arange(blocks.columns, dtype=jnp.int32)[None]

  def step(k, carry):
    start = (steps - 1 - k) * blocks.columns
    inside = row & (column + start < tokens)

    def load(ref):
      wide = ref.shape[1] == tokens
      columns = pl.ds(start, blocks.columns) if wide else pl.ds(0, 1)
      at = ref.at[pl.ds(first, blocks.rows), columns]
      return plgpu.load(at, mask=inside if wide else row, other=0)

    get = lambda name: load(read[name]) if name in read else None

    carry = {FILL: carry[:3], LINEAR: carry[3:]}
    adv, joined = advance(
      lambda operator, items: _exclusive(operator, items, carry[operator]),
      get("reward"), jnp.where(load(read["mask"]) > 0, 1.0, 0.0), get("decay"), get("value"),
      get("last"), get("gamma"), get("segment"),
    )  # fmt: skip
    at = out.at[pl.ds(first, blocks.rows), pl.ds(start, blocks.columns)]
    plgpu.store(at, adv, mask=inside)
    pick = lambda x: jnp.sum(jnp.where(column == 0, x, 0), axis=1, keepdims=True)
    filled, composed = (
      tuple(map(pick, operator.combine(items, after)))
      for operator, (items, after) in zip((FILL, LINEAR), joined, strict=True)
    )
    return *filled, *composed

  zero = jnp.zeros((blocks.rows, 1), jnp.float32)
  jax.lax.fori_loop(0, steps, step, (zero, zero, zero.astype(jnp.int32), zero, zero))


def backward_scan(
  reward, mask, decay, *, value, last, gamma, segment, blocks=Blocks(), interpret=False
):  # fmt: skip
  r, t = reward.shape
  width = min(blocks.columns, pl.next_power_of_2(t))
  blocks = dataclasses.replace(blocks, columns=width)
  given = {"reward": reward, "mask": mask, "decay": decay, "value": value, "last": last,
           "gamma": gamma, "segment": segment}  # fmt: skip
  given = {name: x for name, x in given.items() if x is not None}
  kernel = functools.partial(_scan_kernel, names=tuple(given), blocks=blocks, tokens=t, rows=r)
  call = _call(
    kernel, (pl.cdiv(r, blocks.rows),), (r, t), r * t, "backward_scan", blocks, interpret
  )
  return call(*given.values())
