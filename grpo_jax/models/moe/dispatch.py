"""Expert networks on the tokens that were sent to them, without dropping any: three ways.

Expert e is down_e(act(up_e u)), two linear maps with biases; a token's output is the weighted sum
over its k experts. All ways give the same numbers up to rounding:

  dense    one-hot weights: every expert computes every token, two wide matrix products, E / k times
           the needed work. The specification of the others.
  blocks   assignments sorted by expert and every expert's rows filled up to whole blocks; a linear
           map is one batched product over the blocks, each with its expert's matrix.
  ragged   the same rows; a linear map is one `jax.lax.ragged_dot`.

jax 0.10 compiles ragged_dot to a grouped product for TPUs alone. For CPUs and GPUs it becomes a
product with all E matrices over E copies of the rows, k times the work of `dense`; so does a TPU's
gradient by the matrices, which is therefore made from blocks here. On two CPU cores and at T2MIR's
sizes a training step of the layer takes, in units of `blocks`: dense 1.7 to 4, ragged 3 to 5, and
one-hot dispatch into buffers of a fixed capacity (paper 57, 1952 tokens) 9.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.models.moe import gates
from grpo_jax.names import one_of

Experts = dict[str, Array]  # up [E, d, h], up_bias [E, h], down [E, h, o], down_bias [E, o]
Act = Callable[[Array], Array]
BLOCK = 256  # rows of a block, at most
DEFAULT = {"tpu": "ragged"}  # elsewhere blocks


def init(key: Array, experts: int, width: int, hidden: int, out: int) -> Experts:
  keys = jax.random.split(key, 4)
  return {
    "up": gates.uniform_weights(keys[0], (experts, width, hidden), width),
    "up_bias": gates.uniform_weights(keys[1], (experts, hidden), width),
    "down": gates.uniform_weights(keys[2], (experts, hidden, out), hidden),
    "down_bias": gates.uniform_weights(keys[3], (experts, out), hidden),
  }


def run(
  params: Experts,
  u: Float[Array, "N d"],
  expert: Int[Array, "N k"],
  weight: Float[Array, "N k"],
  act: Act,
  way: str | None = None,
) -> Float[Array, "N o"]:
  """sum_i weight[n, i] * F_{expert[n, i]}(u[n]); an expert outside 0 .. E - 1 adds nothing.

  way: a name of the list above. None takes what is fastest on `jax.default_backend()`, and `dense`
  where every expert is chosen; to compile for another platform, name it. Raises UserError for
  another name.
  """
  experts = params["up"].shape[0]
  if way is None:
    way = "dense" if expert.shape[1] >= experts else DEFAULT.get(jax.default_backend(), "blocks")
  one_of("dispatch", way, WAYS)
  return WAYS[way](params, u, expert, weight, act)


def dense(params: Experts, u, expert, weight, act: Act) -> Float[Array, "N o"]:
  experts, width, hidden = params["up"].shape
  share = gates.placed(expert, weight, experts)  # [N, E]
  up = params["up"].transpose(1, 0, 2).reshape(width, experts * hidden)
  x = act(u @ up + params["up_bias"].reshape(1, -1)).reshape(-1, experts, hidden)
  x = (x * share[..., None]).reshape(-1, experts * hidden)
  return x @ params["down"].reshape(experts * hidden, -1) + share @ params["down_bias"]


# ---- assignments sorted by expert ----------------------------------------------------------------


class Order(NamedTuple):
  """Rows of the sorted buffer and what stands in them; a row is one assignment, or padding."""

  size: Int[Array, " E"]  # rows of each expert, padding included
  assignment: Int[Array, " R"]  # n * k + i; any where the row is padding
  real: Bool[Array, " R"]  # False: padding
  row: Int[Array, "N k"]  # where an assignment went


def sort(expert: Int[Array, "N k"], experts: int, block: int) -> Order:
  """Rows by expert, every expert's number of rows filled up to a multiple of `block`.

  Counts instead of comparing: an assignment's place among those of its expert is a running sum.
  Those outside 0 .. E - 1 come last.
  """
  flat = expert.reshape(-1)
  count = flat.shape[0]
  elsewhere = (flat < 0) | (flat >= experts)
  flat = jnp.where(elsewhere, experts, flat)
  columns = jnp.arange(experts + 1, dtype=flat.dtype)[None]
  hot = (flat[:, None] == columns).astype(jnp.int32)  # [N k, E + 1]
  before = jnp.cumsum(hot, axis=0)
  size = -(-before[-1] // block) * block
  start = jnp.cumsum(size) - size
  row = jnp.sum(hot * (before - 1 + start[None]), axis=1)
  rows = (count + (experts + 1) * (block - 1)) // block * block
  at = jnp.full((rows,), -1, jnp.int32).at[row].set(jnp.arange(count, dtype=jnp.int32))
  return Order(size[:-1], jnp.maximum(at, 0), at >= 0, row.reshape(expert.shape))


@jax.custom_vjp
def to_rows(u: Float[Array, "N d"], order: Order) -> Float[Array, "R d"]:
  """Every assignment's token. The backward pass gathers too: the automatic one would scatter."""
  return jnp.take(u, order.assignment // order.row.shape[1], axis=0, mode="clip")


def _to_rows_backward(order, ct):
  return jnp.sum(jnp.take(ct, order.row, axis=0, mode="clip"), axis=1), None


to_rows.defvjp(lambda u, order: (to_rows(u, order), order), _to_rows_backward)


@jax.custom_vjp
def from_rows(y: Float[Array, "R o"], order: Order) -> Float[Array, "N k o"]:
  """Every assignment's row; with a gather as its backward pass."""
  return jnp.take(y, order.row, axis=0, mode="clip")


def _from_rows_backward(order, ct):
  flat = ct.reshape(-1, ct.shape[-1])
  back = jnp.take(flat, order.assignment, axis=0, mode="clip")
  return jnp.where(order.real[:, None], back, 0), None


from_rows.defvjp(lambda y, order: (from_rows(y, order), order), _from_rows_backward)


class _Blocks(NamedTuple):
  """What the products know of the rows: whole blocks, each of one expert."""

  size: Int[Array, " E"]
  owner: Int[Array, " n"]  # expert of each block; E: of none that is here
  inside: Bool[Array, "R 1"]  # the row is of an expert that is here


def _rows(u, expert, experts: int) -> tuple[Float[Array, "R d"], Order, _Blocks]:
  # A quarter of an expert's rows, where few: half a block of padding an expert is then an eighth.
  block = max(8, min(BLOCK, expert.size // (4 * experts) // 8 * 8))
  order = sort(expert, experts, block)
  ends = jnp.cumsum(order.size)
  first = jnp.arange(order.real.shape[0] // block, dtype=jnp.int32)[:, None] * block
  owner = jnp.sum((first >= ends[None]).astype(jnp.int32), axis=1)
  inside = jnp.arange(order.real.shape[0], dtype=jnp.int32)[:, None] < ends[-1]
  return to_rows(u, order), order, _Blocks(order.size, owner, inside)


def _sum(y: Float[Array, "R o"], order: Order, expert, weight, experts: int) -> Float[Array, "N o"]:
  here = ((expert >= 0) & (expert < experts))[..., None]
  return jnp.sum(jnp.where(here, from_rows(y, order), 0) * weight[..., None], axis=1)


def _experts(product, params: Experts, u, expert, weight, act: Act) -> Float[Array, "N o"]:
  experts = params["up"].shape[0]
  x, order, where = _rows(u, expert, experts)
  bias = lambda b: _by_block(_pick(b, where.owner)[:, None], x.shape[0])
  x = act(product(x, params["up"], where) + bias(params["up_bias"]))
  y = product(x, params["down"], where) + bias(params["down_bias"])
  return _sum(y, order, expert, weight, experts)


def _by_block(x: Float[Array, "n 1 h"], rows: int) -> Float[Array, "R h"]:
  shape = x.shape[0], rows // x.shape[0], x.shape[2]
  return jnp.broadcast_to(x, shape).reshape(rows, -1)


@jax.custom_vjp
def _pick(w: Float[Array, "E ..."], expert: Int[Array, " n"]) -> Float[Array, "n ..."]:
  """w[expert]; its backward pass is a product, not a scatter."""
  return jnp.take(w, expert, axis=0, mode="clip")


def _pick_backward(saved, ct):
  experts, expert = saved
  hot = gates.one_hot(expert, experts.shape[0])
  return jnp.einsum("ne,n...->e...", hot, ct), None


_pick.defvjp(
  lambda w, expert: (_pick(w, expert), (jnp.zeros((w.shape[0],)), expert)), _pick_backward
)


def _batched(x: Float[Array, "R a"], w: Float[Array, "E a b"], where: _Blocks) -> Array:
  """Every row times its expert's matrix."""
  x = x.reshape(where.owner.shape[0], -1, x.shape[1])
  return jnp.einsum("nra,nab->nrb", x, _pick(w, where.owner)).reshape(-1, w.shape[2])


@jax.custom_vjp
def _grouped(x: Float[Array, "R a"], w: Float[Array, "E a b"], where: _Blocks) -> Array:
  """As `_batched`, by ragged_dot, which need not write the rows behind the last expert's: 0 here.

  Their cotangent is 0 too, since nobody reads them (`_sum`).
  """
  return jnp.where(where.inside, jax.lax.ragged_dot(x, w, where.size), 0)


def _grouped_backward(saved, ct):
  x, w, where = saved
  dx = _grouped(ct, w.transpose(0, 2, 1), where)
  split = lambda x: x.reshape(where.owner.shape[0], -1, x.shape[1])
  one = jnp.einsum("nra,nrb->nab", split(x), split(ct))
  return dx, jnp.einsum("ne,nab->eab", gates.one_hot(where.owner, w.shape[0]), one), None


_grouped.defvjp(lambda x, w, where: (_grouped(x, w, where), (x, w, where)), _grouped_backward)
blocks = functools.partial(_experts, _batched)
ragged = functools.partial(_experts, _grouped)
WAYS = {"dense": dense, "blocks": blocks, "ragged": ragged}
