"""What the TPU kernels share: block sizes, the list of visits, the order of a block's columns.

A block of queries holds `query` positions times the query heads of one key head, and lies
transposed: [d, columns]. Scores are [keys, columns], so whatever belongs to a query (maximum, sum,
ranges) is one row of full lanes, heads of 64 waste none, and no matrix product needs a transpose.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

LOW = -2e30  # a masked score
TOP = -1e30  # the maximum before any score: exp(LOW - TOP) is 0, also where all is masked
SKIP, MASKED, FULL, FIRST, LAST = 0, 1, 2, 4, 8
MAX_LIST = 2**16  # visits whose list fits scalar memory


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Positions and keys of a block, forward and backward; keys of a block of a cache (decode)."""

  query: int = 256
  key: int = 512
  query_back: int = 256
  key_back: int = 512
  cache: int = 512

  def __post_init__(self):
    for name, size in dataclasses.asdict(self).items():
      if size < 8 or size % 8:
        raise ValueError(f"{name}={size}: must be a positive multiple of 8")

  def require_lanes(self) -> None:
    """Compiled kernels hold every one of these in lanes somewhere."""
    for name, size in dataclasses.asdict(self).items():
      if size % 128:
        raise ValueError(f"{name}={size}: must be a multiple of 128 on a TPU")


@dataclasses.dataclass(frozen=True)
class Options:
  """What is static about a call."""

  softcap: float | None
  sink: bool
  window: bool
  blocks: Blocks
  interpret: bool
  pairs: int  # scores of one head of one row, for the cost estimate


# (columns of a block, its keys) forward, the same backward, keys of a cache's block; by kind of
# device and up to a head size. Reasoned from VMEM and the width of the matrix unit and compiled,
# not tuned: no TPU was at hand.
_SIZES = {
  "TPU v4": {128: ((768, 512), (512, 512), 512), 256: ((512, 512), (512, 256), 512)},
  "": {128: ((1024, 512), (1024, 512), 1024), 256: ((1024, 512), (512, 512), 512)},
}


def default_blocks(rep: int, head_dim: int, device_kind: str | None = None) -> Blocks:
  """`rep` query heads a key head; `device_kind` as jax names it, default: the first device's."""
  kind = str(jax.devices()[0].device_kind) if device_kind is None else device_kind
  sizes = _SIZES.get(kind, _SIZES[""])
  forward, back, cache = next(s for d, s in sizes.items() if head_dim <= d)
  positions = lambda columns: max(columns // rep // 128, 1) * 128
  return Blocks(positions(forward[0]), forward[1], positions(back[0]), back[1], cache)


def check(*arrays: Array, kv: int, blocks: Blocks | None, interpret: bool) -> Blocks:
  """The blocks to use; raises NotImplementedError for arrays that the kernels do not take."""
  dtypes = {str(a.dtype) for a in arrays}
  d, heads = arrays[0].shape[-1], arrays[0].shape[-2]
  if len(dtypes) > 1:
    raise NotImplementedError(f"queries, keys and values of different dtypes {sorted(dtypes)}")
  if not interpret and not dtypes <= {"bfloat16", "float32"}:
    raise NotImplementedError(f"dtype {dtypes.pop()}: only bfloat16 and float32")
  if heads % kv:
    raise NotImplementedError(f"{heads} query heads: not a multiple of {kv} key heads")
  if not interpret and (d % 16 or d > 256):
    raise NotImplementedError(f"head size {d}: only multiples of 16 up to 256")
  blocks = default_blocks(heads // kv, d) if blocks is None else blocks
  if not interpret:
    blocks.require_lanes()
  return blocks


def ceil(x: int, block: int) -> int:
  return -(-x // block)


def fit(size: int, block: int) -> int:
  """A block no larger than `size` needs, still a whole number of lanes if it was one."""
  step = 128 if block % 128 == 0 else 8
  return min(block, ceil(size, step) * step)


def to_columns(x: Float[Array, "N S H d"], kv: int, block: int) -> Float[Array, "N K d Y"]:
  """Column (b, r, i) of key head j: position b * block + i of query head j * rep + r."""
  n, s, h, d = x.shape
  count = ceil(s, block)
  x = jnp.pad(x, ((0, 0), (0, count * block - s), (0, 0), (0, 0)))
  x = x.reshape(n, count, block, kv, h // kv, d).transpose(0, 3, 5, 1, 4, 2)
  return x.reshape(n, kv, d, -1)


def from_columns(x: Float[Array, "N K d Y"], s: int, h: int, block: int) -> Float[Array, "N S H d"]:
  n, kv, d, y = x.shape
  rep = h // kv
  x = x.reshape(n, kv, d, y // (rep * block), rep, block).transpose(0, 3, 5, 1, 4, 2)
  return x.reshape(n, -1, h, d)[:, :s]


def range_columns(ranges: Int[Array, "N 4 S"], rep: int, block: int) -> Int[Array, "N 4 Y"]:
  n, four, s = ranges.shape
  count = ceil(s, block)
  x = jnp.pad(ranges, ((0, 0), (0, 0), (0, count * block - s)))
  x = x.reshape(n, four, count, 1, block)
  return jnp.broadcast_to(x, (n, four, count, rep, block)).reshape(n, four, -1)


def key_rows(x: Float[Array, "N M K d"], block: int) -> Float[Array, "N K M2 d"]:
  pad = ceil(x.shape[1], block) * block - x.shape[1]
  return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).transpose(0, 2, 1, 3)


def overlap(
  ranges: Int[Array, "N 4 S"], query_block: int, key_block: int, keys: int
) -> tuple[Bool[Array, "N B C"], Bool[Array, "N B C"]]:
  """Whether any query of block b sees a key of block c, and whether all see the whole of c.

  The first may be true for nothing: ranges of a block's queries are joined by their hull. Padding
  does not count: what it computes is dropped.
  """
  n, _, s = ranges.shape
  count = ceil(s, query_block)
  x = jnp.pad(ranges, ((0, 0), (0, 0), (0, count * query_block - s)))
  a0, a1, b0, b1 = (x[:, i].reshape(n, count, query_block) for i in range(4))
  start = (jnp.arange(ceil(keys, key_block), dtype=jnp.int32) * key_block)[None, None]
  end = start + key_block
  alive = (a1 > a0) | (b1 > b0)
  some, whole = False, False
  for lo, hi in ((a0, a1), (b0, b1)):
    seen = hi > lo
    first = jnp.min(jnp.where(seen, lo, 2**30), axis=-1, keepdims=True)
    last = jnp.max(jnp.where(seen, hi, 0), axis=-1, keepdims=True)
    some = some | ((first < end) & (last > start))
    latest = jnp.max(jnp.where(alive, lo, 0), axis=-1, keepdims=True)
    earliest = jnp.min(jnp.where(alive, hi, 2**30), axis=-1, keepdims=True)
    whole = whole | ((latest <= start) & (earliest >= end))
  return some, whole


def visits(
  some: Bool[Array, "N B C"], whole: Bool[Array, "N B C"], width: int
) -> tuple[Int[Array, " V"], Int[Array, ""]]:
  """Every row's pairs (b, c) to visit, b by b, as a flat list of N * width numbers, and how many
  the longest row has. A b without any c gets one visit, so that its output is written.

  A number: b in bits 18 to 30, c in bits 4 to 17, then LAST, FIRST of its b, and SKIP, MASKED or
  FULL. The list of a shorter row ends with its last pair again, to be skipped.
  """
  n, outer, inner = some.shape
  none = ~jnp.any(some, axis=-1, keepdims=True)
  some = some | (none & (jnp.arange(inner) == 0)[None, None])
  wanted = some.reshape(n, -1)
  count = jnp.sum(wanted, axis=-1, dtype=jnp.int32)[:, None]
  order = jnp.argsort(~wanted, axis=-1, stable=True)[:, :width].astype(jnp.int32)
  step = jnp.arange(order.shape[1], dtype=jnp.int32)[None]
  real = step < count
  pair = jnp.take_along_axis(order, jnp.minimum(step, count - 1), axis=1)
  b, c = pair // inner, pair % inner
  full = jnp.take_along_axis((whole & some).reshape(n, -1), pair, axis=1)
  edge = jnp.ones((n, 1), bool)
  change = b[:, 1:] != b[:, :-1]
  first = jnp.concatenate([edge, change], axis=1) & real
  last = (jnp.concatenate([change, edge], axis=1) | (step == count - 1)) & real
  kind = jnp.where(real, jnp.where(full, FULL, MASKED), SKIP)
  item = (b << 18) | (c << 4) | kind | jnp.where(first, FIRST, 0) | jnp.where(last, LAST, 0)
  return item.astype(jnp.int32).reshape(-1), jnp.max(count)


def most_visits(queries: int, keys: int, query_block: int, key_block: int) -> int:
  """Pairs of blocks that some prefix_length and segments can make necessary: none is later."""
  ends = [min((b + 1) * query_block, queries) for b in range(ceil(queries, query_block))]
  return sum(ceil(keys - queries + end, key_block) for end in ends)


def outer_of(item: Int[Array, ""]) -> Int[Array, ""]:
  return item >> 18


def inner_of(item: Int[Array, ""]) -> Int[Array, ""]:
  return (item >> 4) & 0x3FFF


def dot(x, y, contract: tuple[int, int] = (1, 0)):
  dims = (((contract[0],), (contract[1],)), ((), ()))
  return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def masked_scores(score, ranges_ref, key_block, masked: bool, options: Options):
  """Scores [keys, columns], LOW where the column's query does not see the key, and the slope of
  the soft cap (None without one)."""
  slope = None
  if options.softcap is not None:
    bent = jnp.tanh(score * (1 / options.softcap))
    score, slope = options.softcap * bent, 1 - bent * bent
  if masked:
    a0, a1, b0, b1 = (ranges_ref[i : i + 1, :] for i in range(4))
    key = jax.lax.broadcasted_iota(jnp.int32, score.shape, 0) + key_block * score.shape[0]
    prefix = key < a1
    if options.window:
      prefix = prefix & (key >= a0)
    score = jnp.where(prefix | ((key >= b0) & (key < b1)), score, LOW)
  return score, slope


def specs(width: int, by_query: bool, *blocks: tuple[str, tuple[int, ...]]) -> list[pl.BlockSpec]:
  """Block specs from (where, shape of the block). "columns": of [N, K, ?, Y]; "ranges": [N, 4, Y];
  "rows": [N, K, M, ?]; "turned": [N, K, ?, M]. `by_query`: the list's outer index counts blocks of
  queries, else of keys."""
  query, key = (outer_of, inner_of) if by_query else (inner_of, outer_of)
  place = {
    "columns": lambda n, h, item: (n, h, 0, query(item)),
    "ranges": lambda n, h, item: (n, 0, query(item)),
    "rows": lambda n, h, item: (n, h, key(item), 0),
    "turned": lambda n, h, item: (n, h, 0, key(item)),
  }

  def spec(where, shape):
    lead = (None,) if where == "ranges" else (None, None)
    return pl.BlockSpec(lead + shape, lambda n, h, w, work: place[where](n, h, work[n * width + w]))

  return [spec(*block) for block in blocks]
