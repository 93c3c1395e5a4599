"""Algorithm Distillation at work: the context is the learner's own history, the episode of now too.

Tokens are `history`: s, a, r of every step. An action is what the model gives at the state token,
from all before it. Episodes follow each other; where the window is full, the oldest one leaves
(T2MIR, arXiv:2506.05426: a buffer of whole episodes). Of `episodes` the earlier ones stand in
ascending order of their returns, and the least leaves, as in T2MIR's code.

Tokens are appended to a key-value cache, which is filled anew at the start of an episode, as what
has left shifts all positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from grpo_jax.core.transitions import Transitions
from grpo_jax.errors import UserError
from grpo_jax.models.in_context import transformer as model
from grpo_jax.rollout.in_context.play import Episodes, choose, in_turn, taken
from grpo_jax.rollout.in_context.tokens import Layout, empty


def check(layout: Layout) -> None:
  """Raises UserError unless the window is of histories and of two whole episodes or more."""
  family = layout.family
  if not layout.history:
    raise UserError(f"tokens={layout.kind!r}: only history and episodes are played as a history")
  if layout.steps % family.horizon or layout.steps < 2 * family.horizon:
    raise UserError(
      f"data.steps={layout.steps}: must be a multiple of the horizon of {family.name}, "
      f"{family.horizon}, and at least twice as large: one episode to remember, one to play"
    )


def play(
  layout: Layout,
  config,
  params,
  tasks: Any,
  key: Array,
  episodes: int,
  data: Transitions | None = None,
  greedy: bool = False,
) -> Episodes:
  """Episodes of B tasks from a history [B, n] of whole ones; None: an empty one. UserError as in
  `check`."""
  check(layout)

  def begin(data, state):
    cache = opened_cache(layout, config, params, data)
    return (state, cache), lambda carry, key: step(
      layout, config, params, tasks, greedy, carry, key
    )

  room = layout.steps - layout.family.horizon  # the episode of now is in the window too
  ascending = layout.kind == "episodes"
  return in_turn(layout.family, tasks, key, episodes, begin, room, data, ascending)


def opened_cache(layout: Layout, config, params, data: Transitions) -> model.Cache:
  """The cache of a history [B, n], with room for one more episode."""
  count, filled = data.reward.shape
  size = layout.each * (filled + layout.family.horizon)
  cache = model.open_cache(config, count, size)
  return _append(layout, config, params, cache, jax.vmap(layout.tokens)(data))[1]


def step(layout: Layout, config, params, tasks, greedy: bool, carry, key):
  """((state, cache) after, (transition, whether the action was the label)) of B tasks."""
  (state, cache), family = carry, layout.family
  choice, outcome = jax.random.split(key)
  seen = jax.vmap(family.observe)(state)
  room = jax.tree.map(lambda x: jnp.zeros((seen.shape[0], *x.shape), x.dtype), empty(family, 1))
  token = jax.vmap(layout.tokens)(room.replace(state=seen[:, None]))[:, :1]
  output, cache = _append(layout, config, params, cache, token)
  action = choose(family, output[:, -1], choice, greedy)
  after, (new, right) = taken(family, tasks, state, seen, action, outcome)
  tokens = jax.vmap(layout.tokens)(jax.tree.map(lambda x: x[:, None], new))
  _, cache = _append(layout, config, params, cache, tokens[:, 1:])
  return (after, cache), (new, right)


def _append(layout: Layout, config, params, cache: model.Cache, tokens: Array):
  """(outputs at the tokens, the cache with them); of no tokens, nothing."""
  size = tokens.shape[1]
  if not size:
    return jnp.zeros((tokens.shape[0], 0, config.outputs)), cache
  table = jnp.asarray(layout.position)
  position = jax.lax.dynamic_slice_in_dim(table, cache.length, size)
  return model.extend(config, params, cache, tokens, position=position)
