"""Expert networks on the tokens that were sent to them, without dropping any: three ways.

Expert e is down_e(act(up_e u)), two linear maps with biases; a token's output is the weighted sum
over its k experts. All ways give the same numbers up to rounding:

  dense    every expert computes every token, and a token's other experts get weight 0: two wide
           matrix products, E / k times the needed work. The specification of the others.
  ragged   assignments sorted by expert, one `jax.lax.ragged_dot` a linear map.
  blocks   sorted too, every expert's rows filled up to whole blocks, one batched product over the
           blocks, each with its expert's matrix.

On TPU and GPU ragged_dot is a grouped product. On the CPU jax 0.10 lowers it to a product with
all E matrices over a copy of the rows masked for each, k times the work of `dense`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.errors import UserError
from grpo_jax.models import moe_gates as gates

Experts = dict[str, Array]  # up [E, d, h], up_bias [E, h], down [E, h, o], down_bias [E, o]
Act = Callable[[Array], Array]
BLOCK = 256  # rows of a block, at most
DEFAULT = {"tpu": "ragged", "gpu": "ragged", "cpu": "blocks"}


def init(key: Array, experts: int, width: int, hidden: int, out: int) -> Experts:
  keys = jax.random.split(key, 4)
  return {
    "up": gates.uniform(keys[0], (experts, width, hidden), width),
    "up_bias": gates.uniform(keys[1], (experts, hidden), width),
    "down": gates.uniform(keys[2], (experts, hidden, out), hidden),
    "down_bias": gates.uniform(keys[3], (experts, out), hidden),
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
    way = "dense" if expert.shape[1] >= experts else DEFAULT.get(jax.default_backend(), "ragged")
  if way not in WAYS:
    raise UserError(f"dispatch={way!r}: use one of {', '.join(WAYS)}, or None for the backend's")
  return WAYS[way](params, u, expert, weight, act)


def dense(params: Experts, u, expert, weight, act: Act) -> Float[Array, "N o"]:
  experts, width, hidden = params["up"].shape
  share = gates.spread(expert, weight, experts)  # [N, E]
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


def _sum(y: Float[Array, "R o"], order: Order, expert, weight, experts: int) -> Float[Array, "N o"]:
  here = ((expert >= 0) & (expert < experts))[..., None]
  return jnp.sum(jnp.where(here, from_rows(y, order), 0) * weight[..., None], axis=1)


def ragged(params: Experts, u, expert, weight, act: Act) -> Float[Array, "N o"]:
  experts = params["up"].shape[0]
  order = sort(expert, experts, 1)
  ends = jnp.cumsum(order.size)[None]
  row = jnp.arange(order.real.shape[0], dtype=jnp.int32)[:, None]
  hot = gates.one_hot(jnp.sum((row >= ends).astype(jnp.int32), axis=1), experts)
  x = jax.lax.ragged_dot(to_rows(u, order), params["up"], order.size) + hot @ params["up_bias"]
  y = jax.lax.ragged_dot(act(x), params["down"], order.size) + hot @ params["down_bias"]
  return _sum(y, order, expert, weight, experts)


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


def blocks(params: Experts, u, expert, weight, act: Act) -> Float[Array, "N o"]:
  experts, width, _ = params["up"].shape
  # A quarter of an expert's rows, where few: half a block of padding an expert is then an eighth.
  block = max(8, min(BLOCK, expert.size // (4 * experts) // 8 * 8))
  order = sort(expert, experts, block)
  count = order.real.shape[0] // block
  first = jnp.arange(count, dtype=jnp.int32)[:, None] * block
  owner = jnp.sum((first >= jnp.cumsum(order.size)[None]).astype(jnp.int32), axis=1)
  owner = jnp.minimum(owner, experts - 1)  # blocks behind the last compute what nobody reads
  x = to_rows(u, order).reshape(count, block, width)
  x = jnp.einsum("nbd,ndh->nbh", x, _pick(params["up"], owner))
  x = act(x + _pick(params["up_bias"], owner)[:, None])
  y = jnp.einsum("nbh,nho->nbo", x, _pick(params["down"], owner))
  y = y + _pick(params["down_bias"], owner)[:, None]
  return _sum(y.reshape(count * block, -1), order, expert, weight, experts)


WAYS = {"dense": dense, "ragged": ragged, "blocks": blocks}
