"""Batches of contexts with their labels, drawn from a family on the fly."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from grpo_jax.core.transitions import Transitions
from grpo_jax.envs.contextual.family import Family
from grpo_jax.rollout.in_context.tokens import Layout
from grpo_jax.types import Batch, Rollouts, rows_of

# (tasks [B], keys [B], steps) -> contexts [B, steps]
Source = Callable[[Any, Array, int], Transitions]
_MORE = 8  # tasks drawn for every one wanted, to find different ones


def draw(
  layout: Layout, key: Array, size: int, *, pairs: bool = False, source: Source | None = None
) -> tuple[Rollouts, Batch]:
  """`size` contexts, each of its own task and with its own query state, and the optimal action
  there as the label of all its prefixes; of histories the label is the action that follows.

  pairs: rows i and i + size / 2 are contexts of one task, drawn independently, and the tasks of
  the first half differ (tasks are compared by value; a task comes twice only where the family has
  too few). Contexts are shuffled unless the family forbids it; those of a source, or read as a
  history, keep their order.
  `Batch.extra`: x f32[B, L, W], and label f32[B, L, A] of continuous families.
  """
  family = layout.family
  kinds = jax.random.split(key, 4)
  if pairs:
    half = different(family, kinds[0], size // 2)
    tasks = jax.tree.map(lambda x: jnp.concatenate([x, x]), half)
  else:
    tasks = jax.vmap(family.task)(jax.random.split(kinds[0], size))
  data = contexts(family, tasks, jax.random.split(kinds[1], size), layout.steps, source)
  if family.shuffle and source is None and not layout.history:
    data = jax.vmap(shuffled)(data, jax.random.split(kinds[2], size))
  states = jax.vmap(family.query)(tasks, jax.random.split(kinds[3], size))
  x = jax.vmap(layout.encode)(jax.vmap(family.observe)(states), data)
  if layout.history:
    label = data.action
  else:
    label = jax.vmap(family.label)(tasks, states)
    label = jnp.repeat(label[:, None], len(layout.reads), axis=1)
  return rollouts_of(size), _batch(layout, x, label)


def contexts(family: Family, tasks, keys, steps: int, source: Source | None) -> Transitions:
  if source is not None:
    return source(tasks, keys, steps)
  return jax.vmap(lambda task, key: family.behave(task, key, steps))(tasks, keys)


def shuffled(data: Transitions, key: Array) -> Transitions:
  """Transitions of one context in another order."""
  order = jax.random.permutation(key, data.reward.shape[0])
  return jax.tree.map(lambda x: x[order], data)


def different(family: Family, key: Array, count: int):
  """`count` tasks [count] without repeats: of some more draws, the first of each kind, in order.

  Uniform without replacement where the family draws uniformly from a list. Where the draws hold
  fewer kinds than `count`, repeats follow.
  """
  tasks = jax.vmap(family.task)(jax.random.split(key, _MORE * count))
  repeats = seen_before(tasks)
  order = jnp.argsort(repeats, stable=True)[:count]
  return jax.tree.map(lambda x: x[order], tasks)


def seen_before(tasks) -> Bool[Array, " n"]:
  """Whether an equal task stands earlier in the stack."""
  same = True
  for leaf in jax.tree.leaves(tasks):
    flat = leaf.reshape(leaf.shape[0], -1)
    same = same & jnp.all(flat[:, None] == flat[None], axis=-1)
  return jnp.any(jnp.tril(same, -1), axis=1)


def rollouts_of(rows: int) -> Rollouts:
  """Rows without rewards: a context a row, all alive."""
  one = jnp.ones((rows, 1), bool)
  return Rollouts(
    prompt=jnp.arange(rows, dtype=jnp.int32),
    reward=jnp.zeros((rows, 1)),
    alive=one,
    correct=one,
    truncated=~one,
    length=jnp.ones((rows, 1), jnp.int32),
  )


def _batch(layout: Layout, x: Array, label: Int[Array, "B n"] | Array) -> Batch:
  rows = x.shape[0]
  place = np.zeros(layout.length, np.float32)
  place[layout.reads] = 1
  mask = jnp.broadcast_to(jnp.asarray(place)[None], (rows, layout.length))
  tokens = jnp.zeros((rows, layout.length), jnp.int32)
  extra = {"x": x}
  if layout.family.continuous:
    room = jnp.zeros((rows, layout.length, layout.family.actions))
    extra["label"] = room.at[:, layout.reads].set(label)
  else:
    tokens = tokens.at[:, layout.reads].set(label)
  return rows_of(rollouts_of(rows), tokens, mask, extra=extra)
