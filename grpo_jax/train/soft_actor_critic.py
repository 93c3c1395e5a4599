"""Soft actor-critic learners, one a task, all in one program: their lives are learning histories.

For families with continuous actions; formulas in core/soft_actor_critic.py. Every step all learners
act, one step each, and after every `every`-th step they all make one update from their own replay,
which is the whole history so far. The first `warmup` episodes are uniform actions, without updates.
An episode ends by its horizon only. J_pi reads the critics as they stood before the update.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from grpo_jax.core import soft_actor_critic as sac
from grpo_jax.core.transitions import Transitions
from grpo_jax.envs.contextual.family import Family
from grpo_jax.errors import UserError
from grpo_jax.models import mlp
from grpo_jax.types import Record, record

_LOG_STD = (-5.0, 2.0)  # the output is squashed into it: hard limits have no gradient beyond
_CRITICS = 2


@dataclasses.dataclass(frozen=True)
class Sizes:
  """UserError for values out of range. The paper's: lr 3e-4, batch 256, hidden (256, 256)."""

  lr: float = 1e-3
  gamma: float = 0.99
  tau: float = 0.005  # the slow critics' step
  batch: int = 64
  hidden: tuple[int, ...] = (64, 64)
  every: int = 1  # steps between two updates; a divisor of the horizon
  warmup: int = 2  # episodes
  alpha: float = 0.2  # at first
  reward_scale: float = 1.0  # of what the learner is told, not of the history

  def __post_init__(self):
    for name in ("batch", "every", "warmup"):
      if getattr(self, name) < 1:
        raise UserError(f"data.histories.sac.{name}={getattr(self, name)}: must be at least 1")
    for name in ("lr", "alpha", "reward_scale"):
      if not getattr(self, name) > 0:
        raise UserError(f"data.histories.sac.{name}={getattr(self, name)}: must be above 0")
    for name in ("gamma", "tau"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"data.histories.sac.{name}={getattr(self, name)}: must be from 0 to 1")


@record
class LearnerState(Record):
  params: Any  # {"actor", "critics", "log_alpha"}
  slow: Any  # of the critics
  opt_state: Any


class Networks:
  """Policy and critics of a family: pure functions of parameters."""

  def __init__(self, family: Family, plan: Sizes):
    s, a, wide = family.observation, family.actions, tuple(plan.hidden)
    self.policy = mlp.MLPConfig(s, 2 * a, hidden=wide, activation="relu")
    self.critic = mlp.MLPConfig(s + a, 1, hidden=wide, activation="relu")
    self.sizes = {"actor": (s, *wide, 2 * a), "critics": (s + a, *wide, 1)}
    self.actions, self.alpha = a, plan.alpha

  def init(self, key: Array) -> dict[str, Any]:
    """Weights and biases uniform within 1 / sqrt(inputs): orthogonal ones would take longer to make
    for all learners than some of their episodes."""
    actor, critics = jax.random.split(key)
    one = lambda key: _tower(key, self.sizes["critics"])
    return {
      "actor": _tower(actor, self.sizes["actor"]),
      "critics": jax.vmap(one)(jax.random.split(critics, _CRITICS)),
      "log_alpha": jnp.log(jnp.float32(self.alpha)),
    }

  def act(self, actor, seen: Array, noise: Array) -> sac.Action:
    mean, spread = jnp.split(mlp.policy(self.policy, {"actor": actor}, seen), 2, axis=-1)
    low, high = _LOG_STD
    return sac.squashed(mean, low + 0.5 * (high - low) * (jnp.tanh(spread) + 1), noise)

  def values(self, critics, seen: Array, action: Array) -> Array:
    """f32[K, B]."""
    x = jnp.concatenate([seen, action], axis=-1)
    return jax.vmap(lambda one: mlp.value(self.critic, {"critic": one}, x))(critics)


def _tower(key: Array, sizes: tuple[int, ...]) -> list[dict[str, Array]]:
  """Layers as models/mlp.py reads them, of one draw: a dozen of them compile for half a minute."""
  shapes = list(itertools.pairwise(sizes))
  flat = jax.random.uniform(key, (sum(n * m + m for n, m in shapes),), minval=-1.0, maxval=1.0)
  layers, at = [], 0
  for n, m in shapes:
    w, b = flat[at : at + n * m], flat[at + n * m : at + n * m + m]
    layers.append({"w": w.reshape(n, m) * n**-0.5, "b": b * n**-0.5})
    at += n * m + m
  return layers


def losses(nets: Networks, plan: Sizes, params, slow, batch: Transitions, noise: Array) -> Array:
  """J_Q + J_pi + J_alpha on a batch [B]; each moves its own parameters. noise: normal [2, B, A],
  of the action here and of the next."""
  held = jax.lax.stop_gradient
  alpha = jnp.exp(held(params["log_alpha"]))
  here = nets.act(params["actor"], batch.state, noise[0])
  after = nets.act(held(params["actor"]), batch.next_state, noise[1])
  q_next = nets.values(slow, batch.next_state, after.action)
  y = sac.target(plan.reward_scale * batch.reward, q_next, after.logp, alpha, plan.gamma)
  q = nets.values(params["critics"], batch.state, batch.action)
  judged = nets.values(held(params["critics"]), batch.state, here.action)
  return (
    sac.critic_loss(q, held(y))
    + sac.actor_loss(here.logp, judged, alpha)
    + sac.temperature_loss(params["log_alpha"], held(here.logp), -float(nets.actions))
  )


def learn(
  family: Family,
  tasks: Any,
  key: Array,
  *,
  episodes: int,
  plan: Sizes = Sizes(),
  say: Callable[[str], Any] = lambda text: None,
) -> Transitions:
  """Histories [N, episodes * horizon] of one learner on each of these tasks, stacked [N].

  Raises UserError for a family with discrete actions, and a horizon that `every` does not divide.
  """
  if not family.continuous:
    raise UserError(f"family={family.name}: soft actor-critic needs continuous actions")
  if family.horizon % plan.every:
    raise UserError(f"data.histories.sac.every={plan.every}: must divide horizon={family.horizon}")
  count, horizon = jax.tree.leaves(tasks)[0].shape[0], family.horizon
  nets = Networks(family, plan)
  tx = optax.flatten(optax.adam(plan.lr))  # one vector: small arrays cost more to visit than to add
  episode = _make_episode(family, nets, plan, tx)

  def begin(key):
    params = nets.init(key)
    return LearnerState(params=params, slow=params["critics"], opt_state=tx.init(params))

  learners = jax.jit(jax.vmap(begin))(jax.random.split(jax.random.fold_in(key, 0), count))
  room = lambda *shape: jnp.zeros((count, episodes * horizon, *shape))
  s, a = family.observation, family.actions
  replay = Transitions(state=room(s), action=room(a), next_state=room(s), reward=room())
  for e in range(episodes):
    now = jax.random.fold_in(key, e + 1)
    learners, replay, total = episode(tasks, learners, replay, now, jnp.int32(e))
    if (e + 1) % max(1, episodes // 20) == 0:
      say(f"episode {e + 1}/{episodes} of {count} learners: mean return {np.mean(total):.1f}")
  return replay


def _make_episode(family: Family, nets: Networks, plan: Sizes, tx):
  """episode(tasks, learners, replay, key, number) -> (learners, replay, returns [N]). All that is
  random is drawn at its start: far fewer draws to compile."""
  blocks = family.horizon // plan.every

  def update(learner: LearnerState, replay: Transitions, filled, share, noise):
    where = jnp.minimum((share * filled).astype(jnp.int32), filled.astype(jnp.int32) - 1)
    batch = jax.tree.map(lambda x: x[where], replay)
    loss = lambda params: losses(nets, plan, params, learner.slow, batch, noise)
    gradient = jax.grad(loss)(learner.params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
      updates, opt_state = tx.update(gradient, learner.opt_state)
      params: Any = optax.apply_updates(learner.params, updates)
      slow = optax.incremental_update(params["critics"], learner.slow, plan.tau)
    return LearnerState(params=params, slow=slow, opt_state=opt_state)

  def choose(learner: LearnerState, seen, noise):
    return nets.act(learner.params["actor"], seen, noise).action

  def episode(tasks, learners, replay, key, number):
    count, uniform = jax.tree.leaves(tasks)[0].shape[0], number < plan.warmup
    keys = jax.random.split(key, 5)
    shape = blocks, plan.every, count
    drawn = {
      "noise": jax.random.normal(keys[0], (*shape, family.actions)),
      "key": jax.random.split(keys[1], shape),
      "share": jax.random.uniform(keys[2], (blocks, count, plan.batch)),
      "fresh": jax.random.normal(keys[3], (blocks, count, 2, plan.batch, family.actions)),
    }

    def act(learners, carry, now):
      state, replay, filled = carry
      noise, key = now
      seen = jax.vmap(family.observe)(state)
      anything = jax.scipy.special.erf(noise * 0.5**0.5)  # uniform in (-1, 1)
      action = jnp.where(uniform, anything, jax.vmap(choose)(learners, seen, noise))
      after, reward = jax.vmap(family.step)(tasks, state, action, key)
      new = Transitions(
        state=seen, action=action, next_state=jax.vmap(family.observe)(after), reward=reward
      )
      put = lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x[:, None], filled, axis=1)
      return (after, jax.tree.map(put, replay, new), filled + 1), reward

    def block(carry, now):
      learners, *rest = carry
      steps = now["noise"], now["key"]
      rest, reward = jax.lax.scan(lambda c, x: act(learners, c, x), tuple(rest), steps)
      _, replay, filled = rest
      filled = filled.astype(jnp.float32)
      learn = lambda old: jax.vmap(update, (0, 0, None, 0, 0))(
        old, replay, filled, now["share"], now["fresh"]
      )
      return (jax.lax.cond(uniform, lambda old: old, learn, learners), *rest), reward

    state = jax.vmap(family.start)(tasks, jax.random.split(keys[4], count))
    carry = learners, state, replay, number * family.horizon
    (learners, _, replay, _), reward = jax.lax.scan(block, carry, drawn)
    return learners, replay, jnp.sum(reward, axis=(0, 1))

  return jax.jit(episode, donate_argnames=("learners", "replay"))
