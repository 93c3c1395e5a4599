"""Posterior sampling with the exact posterior: the best that a Decision-Pretrained Transformer can
be (paper 27), and so what its returns on Darkroom are to be read against.

Of K equally likely tasks those remain whose every next state and reward are the ones in the
context. Each action is the optimal one of a task drawn anew from them, with the context frozen
while the episode lasts, as the transformer is deployed: steps of an episode follow different tasks.
Where no task remains, all do. For deterministic families whose state can be read off (`recall`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from grpo_jax.core.transitions import Transitions
from grpo_jax.envs.contextual.family import Family
from grpo_jax.rollout.in_context import play as in_context


def consistent(family: Family, known: Any, data: Transitions) -> Bool[Array, "B K"]:
  """Which of the tasks `known`, stacked [K], could have made the contexts [B, n]."""
  assert family.recall is not None
  recall, no_luck = family.recall, jax.random.key(0)

  def same(task, t: Transitions):
    after, reward = family.step(task, recall(t.state), t.action, no_luck)
    return jnp.all(family.observe(after) == t.next_state) & (reward == t.reward)

  whole = lambda task, context: jnp.all(jax.vmap(lambda t: same(task, t))(context))
  return jax.vmap(lambda c: jax.vmap(lambda task: whole(task, c))(known))(data)


def actor(family: Family, known: Any, data: Transitions):
  """act(observation f32[B, S], key) -> actions [B]: the policy of an episode after contexts."""
  assert family.recall is not None
  recall, keep = family.recall, consistent(family, known, data)
  logits = jnp.where(keep | ~jnp.any(keep, axis=1, keepdims=True), 0.0, -jnp.inf)

  def act(seen, key):
    which = jax.random.categorical(key, logits)
    drawn = jax.tree.map(lambda x: x[which], known)
    return jax.vmap(family.label)(drawn, jax.vmap(recall)(seen))

  return act


def play(family: Family, tasks: Any, key: Array, episodes: int, room: int) -> in_context.Episodes:
  """Episodes of tasks stacked [B], each with at most `room` transitions of the earlier ones. The
  prior is uniform over training and held-out tasks together."""
  known = jax.tree.map(lambda *x: jnp.concatenate(x), family.train, family.heldout)

  def begin(data, state):
    act = actor(family, known, data)
    return state, lambda state, key: in_context.step(family, tasks, state, act, key)

  return in_context.in_turn(family, tasks, key, episodes, begin, room)
