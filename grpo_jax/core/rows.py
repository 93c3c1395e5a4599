"""Rollouts and their rows kept together: reordered, cut and joined, with `owner` in step.

  owners         (n, g)                     i32[N G, U] of the plain layout
  split_owner    owner                      (prompt, place in its group)
  regrouped      owner                      the same rollouts in groups of another size
  recounted      batch                      `owner` for the prompts that the rows now stand by
  take, piece    any arrays by prompt       some prompts of them; only moves
  interleave     [pieces, rows, ...]        what was made of the pieces, in the order of the prompts
  take_prompts   rollouts, batch, order     the prompts `order`, in that order
  join_rollouts  [N, G] and [N, K]          [N, G + K]

The rows of a prompt stand together, in the order of the prompts: row r belongs to prompt
r // (R // N), and so do all its units. Arrays may be numpy's or jax's, and stay what they are.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from grpo_jax.errors import UserError
from grpo_jax.types import Batch, Rollouts


def owners(n: int, g: int, units: int = 1, xp: Any = jnp) -> Int[Array, "R U"]:
  """One rollout a row, all units of the row its own. xp: jax.numpy or numpy."""
  return xp.broadcast_to(xp.arange(n * g, dtype=xp.int32)[:, None], (n * g, units))


def split_owner(owner: Array, group: int) -> tuple[Array, Array]:
  """(index of the prompt, index in its group of `group` rollouts)."""
  return owner // group, owner % group


def regrouped(owner: Array, old: int, new: int, first: int = 0) -> Array:
  """`owner` when groups of `old` have become groups of `new`, in which they begin at `first`."""
  prompt, place = split_owner(owner, old)
  return prompt * new + place + first


def recounted(batch: Batch, shape: tuple[int, int]) -> Batch:
  """`batch` after its rows were moved with their prompts: its rollouts are now [N, G] = `shape`."""
  count, group = shape
  xp = _namespace(batch.owner)
  prompt = xp.arange(batch.owner.shape[0], dtype=batch.owner.dtype)
  prompt = prompt // (batch.owner.shape[0] // count)
  return batch.replace(owner=prompt[:, None] * group + batch.owner % group)


def take(tree: Any, count: int, order: Int[Array, " K"]) -> Any:
  """The prompts `order`, of `count`, in every array; what has no dimension belongs to none."""

  def pick(x):
    kept = x.reshape(count, x.shape[0] // count, *x.shape[1:])[order]
    return kept.reshape(-1, *x.shape[1:])

  return jax.tree.map(lambda x: pick(x) if x.ndim else x, tree)


def piece(tree: Any, count: int, pieces: int, index) -> Any:
  """The prompts index, index + pieces, ... of `count` in every array; `index` may be traced.

  With prompts split over devices in blocks, every device has its share of every piece.
  """

  def pick(x):
    x = x.reshape(count // pieces, pieces, x.shape[0] // count, *x.shape[1:])
    if isinstance(index, jax.Array):  # a slice, no gather
      x = jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)
    else:
      x = x[:, index]
    return x.reshape(-1, *x.shape[2:])

  return jax.tree.map(lambda x: pick(x) if x.ndim else x, tree)


def interleave(x: Shaped[Array, "pieces rows *rest"], count: int) -> Shaped[Array, "R *rest"]:
  """Rows of the pieces 0, 1, ... of `count` prompts, put back into the order of the prompts."""
  pieces, rows, *rest = x.shape
  x = x.reshape(pieces, count // pieces, rows * pieces // count, *rest)
  return x.swapaxes(0, 1).reshape(pieces * rows, *rest)


def take_prompts(
  rollouts: Rollouts, batch: Batch, order: Int[Array, " K"]
) -> tuple[Rollouts, Batch]:
  """K prompts with their rollouts and rows; `owner` counts in [K, G]. A prompt may come twice."""
  count, group = rollouts.reward.shape
  kept, rows = take((rollouts, batch), count, order)
  return kept, recounted(rows, (order.shape[0], group))


def join_rollouts(
  rollouts: Rollouts, batch: Batch, more: Rollouts, rows: Batch
) -> tuple[Rollouts, Batch]:
  """[N, G] and [N, K] of the same prompts as [N, G + K]: a prompt's rows, then those in `rows`.

  Rows and units are filled up to the longer ones, with mask 0. Prompts are those of the first.
  Raises UserError unless both have the same optional fields.
  """
  (n, g), (_, k) = rollouts.reward.shape, more.reward.shape
  of_prompt = {"prompt": None, "step": None}
  beside = lambda x, y: _namespace(x).concatenate([x, y], axis=1)
  context = {"prompt_tokens": None, "prompt_length": None}
  first = batch.replace(owner=regrouped(batch.owner, g, g + k), **context)
  second = rows.replace(owner=regrouped(rows.owner, k, g + k, first=g), **context)
  for x, y in ((rollouts.replace(**of_prompt), more.replace(**of_prompt)), (first, second)):
    if jax.tree.structure(x) != jax.tree.structure(y):
      raise UserError(f"{type(x).__name__}: both have to have the same fields; fill in the others")
  units = max(batch.owner.shape[1], rows.owner.shape[1])

  def by_prompt(x, width):
    x = _filled(x, width)
    return x.reshape(n, x.shape[0] // n, *x.shape[1:])

  def woven(x, y):
    width = max(x.shape[1], y.shape[1])
    both = beside(by_prompt(x, width), by_prompt(y, width))
    return both.reshape(-1, *both.shape[2:])

  small = jax.tree.map(beside, rollouts.replace(**of_prompt), more.replace(**of_prompt))
  large = jax.tree.map(woven, _with_owners(first, units), _with_owners(second, units))
  return (
    small.replace(prompt=rollouts.prompt, step=rollouts.step),
    large.replace(prompt_tokens=batch.prompt_tokens, prompt_length=batch.prompt_length),
  )


def _with_owners(batch, units):
  """`owner` filled up by the last unit's: what asks for the owner of a unit that is not there."""
  owner, xp = batch.owner, _namespace(batch.owner)
  last = xp.repeat(owner[:, -1:], units - owner.shape[1], axis=1)
  return batch.replace(owner=xp.concatenate([owner, last], axis=1))


def _filled(x, width):
  return _namespace(x).pad(x, ((0, 0), (0, width - x.shape[1]), *((0, 0),) * (x.ndim - 2)))


def _namespace(x) -> Any:
  """numpy or jax.numpy, whichever `x` is an array of."""
  return x.__array_namespace__()
