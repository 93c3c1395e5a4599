"""Tabular Q-learning, whose learning histories are what Algorithm Distillation is trained on.

For tasks of an `envs.contextual` Family with finitely many states. One step a, r, s' at s:
  Q[s, a] <- Q[s, a] + rate (r + gamma max_b Q[s', b] - Q[s, a])
An episode ends by its horizon only, so the last step looks ahead like the others. Actions are
epsilon-greedy, ties broken evenly; epsilon falls linearly from the first episode to the last.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.core.transitions import Transitions
from grpo_jax.errors import UserError
from grpo_jax.names import between
from grpo_jax.types import Record, record


@record
class History(Record):
  """What a learner lived through, the oldest first."""

  steps: Transitions  # [episodes * horizon]: episodes one after the other
  returns: Float[Array, " E"]  # sum of the rewards of each episode
  q: Float[Array, "S A"]  # at the end


def learn(
  family: Any,
  task: Any,
  key: Array,
  *,
  episodes: int,
  rate: float = 0.5,
  gamma: float = 0.95,
  epsilon: tuple[float, float] = (1.0, 0.05),
  initial: float = 0.0,
) -> History:
  """The history of one learner on one task; vmap over tasks and keys. No gradients are meant to
  pass. T2MIR and AD name no numbers for this learner: rate, gamma and epsilon are ours.

  `initial`: Q before any step; above the largest value it makes the learner explore by itself.
  Raises UserError for a family without a finite number of states or with continuous actions.
  """
  if family.states is None or family.index is None or family.continuous:
    raise UserError(f"family={family.name}: tabular Q-learning needs finitely many states, actions")
  between("episodes", episodes, 1)
  first, last = epsilon

  def one_step(chance, carry, key):
    q, state = carry
    choice, outcome = jax.random.split(key)
    where = family.index(state)
    action = epsilon_greedy(q[where], chance, choice)
    after, reward = family.step(task, state, action, outcome)
    target = reward + gamma * jnp.max(q[family.index(after)])
    q = q.at[where, action].add(rate * (target - q[where, action]))
    seen = Transitions(
      state=family.observe(state),
      action=action,
      next_state=family.observe(after),
      reward=reward,
    )
    return (q, after), seen

  def one_episode(q, now):
    key, chance = now
    begin, go = jax.random.split(key)
    carry = (q, family.start(task, begin))
    keys = jax.random.split(go, family.horizon)
    (q, _), seen = jax.lax.scan(lambda c, k: one_step(chance, c, k), carry, keys)
    return q, seen

  q = jnp.full((family.states, family.actions), initial, jnp.float32)
  now = (jax.random.split(key, episodes), jnp.linspace(first, last, episodes))
  q, seen = jax.lax.scan(one_episode, q, now)
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
  return History(steps=flat, returns=jnp.sum(seen.reward, axis=1), q=q)


def epsilon_greedy(q: Float[Array, " A"], chance: Array, key: Array) -> Int[Array, ""]:
  """With this chance any action, else one of the best, each equally likely."""
  explore, pick = jax.random.split(key)
  allowed = (q == jnp.max(q)) | (jax.random.uniform(explore) < chance)
  draws = jax.random.uniform(pick, q.shape)
  return jnp.argmax(jnp.where(allowed, draws, -1.0)).astype(jnp.int32)
