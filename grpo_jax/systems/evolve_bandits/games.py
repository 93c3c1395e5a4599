"""Many bandits played at once, by learners and by language models; all players meet the same luck.

Reward noise depends on the key, the step and the game, and not on who plays: with the same tasks
and key two players differ by their choices alone. Reported losses are of expected rewards.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from grpo_jax.envs.contextual.family import Family
from grpo_jax.models import choices, policy
from grpo_jax.models.choices import Names
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.systems.evolve_bandits import words
from grpo_jax.tabular.learner import Learner


class Games(NamedTuple):
  """B games of T pulls."""

  action: Any  # i32[B, T]
  reward: Any  # f32[B, T]
  lost: Any  # f32[B, T] expected reward of the best arm minus that of this one
  seen: Any  # i32[B, T] the state before: which user had come, 0 where there is one state


# choose(seen [B, t + 1], action [B, t], reward [B, t], key) -> action [B]
Choose = Callable[[np.ndarray, np.ndarray, np.ndarray, Array], Array]


def keys_at(key: Array, step, games: int) -> tuple[Array, Array]:
  """(key of the choices, keys [B] of the rewards) of one step."""
  choice, outcome = jax.random.split(jax.random.fold_in(key, step))
  return choice, jax.random.split(outcome, games)


def arrive(family: Family, tasks: Any, keys: Array) -> Any:
  """States [B] to act in: every pull is an episode of its own."""
  return jax.vmap(lambda task, key: family.start(task, jax.random.fold_in(key, 1)))(tasks, keys)


def pay(family: Family, tasks: Any, states: Any, action: Array, keys: Array):
  """(rewards, losses) [B] of these pulls."""

  def one(task, state, action, key):
    return family.step(task, state, action, key)[1], family.lost(task, state, action)

  return jax.vmap(one)(tasks, states, action, keys)


_arrive, _pay = jax.jit(arrive, static_argnums=0), jax.jit(pay, static_argnums=0)


def which(family: Family, states: Any) -> Array:
  """Numbers [B] of the states, of a family with finitely many."""
  assert family.index is not None
  return jax.vmap(family.index)(states)


def play(family: Family, tasks: Any, key: Array, steps: int, choose: Choose) -> Games:
  """`steps` pulls of tasks stacked [B]."""
  games = jax.tree.leaves(tasks)[0].shape[0]
  made = lambda dtype: np.zeros((games, steps), dtype)
  out = Games(made(np.int32), made(float), made(float), made(np.int32))
  for t in range(steps):
    choice, outcome = keys_at(key, t, games)
    states = _arrive(family, tasks, outcome)
    out.seen[:, t] = which(family, states)
    out.action[:, t] = choose(out.seen[:, : t + 1], out.action[:, :t], out.reward[:, :t], choice)
    reward, loss = _pay(family, tasks, states, jnp.asarray(out.action[:, t]), outcome)
    out.reward[:, t], out.lost[:, t] = reward, loss
  return out


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def play_learner(family: Family, tasks: Any, key: Array, steps: int, learner: Learner) -> Games:
  """`play` of an online learner, which remembers instead of reading the history."""
  games = jax.tree.leaves(tasks)[0].shape[0]

  def step(memory, t):
    choice, outcome = keys_at(key, t, games)
    states = arrive(family, tasks, outcome)
    context = jax.vmap(family.observe)(states)
    action = jax.vmap(learner.act)(memory, jax.random.split(choice, games), context)
    reward, loss = pay(family, tasks, states, action, outcome)
    memory = jax.vmap(learner.observe)(memory, action, reward, context)
    return memory, Games(action, reward, loss, which(family, states))

  memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (games, *x.shape)), learner.init())
  _, out = jax.lax.scan(step, memory, jnp.arange(steps))
  return Games(*(x.T for x in out))


# ---- language models -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Speaker:
  """A model that names an arm after a prompt; prompts are padded to multiples of `bucket` tokens,
  and one program is compiled a bucket."""

  config: ModelConfig
  tokenizer: Tokenizer
  scene: words.Scenario
  style: str = "summary"
  examples: str = ""
  bucket: int = 16

  @functools.cached_property
  def names(self) -> Names:
    return choices.encode(self.tokenizer, self.scene.names)

  @functools.cached_property
  def trunk(self) -> tuple[int, ...]:
    return tuple(self.tokenizer.encode(words.head(self.scene, self.style, self.examples)))

  @functools.cached_property
  def _score(self):
    forward = policy.make_forward(self.config, trunk=self.trunk)
    return jax.jit(functools.partial(choices.log_policy, forward, self.names))

  def prompts(self, pulls: Sequence[Sequence[words.Pull]], seen=None):
    """(ids i32[B, P] padded on the right, length i32[B]) of the bodies after these pulls, of these
    users."""
    told = zip(pulls, [()] * len(pulls) if seen is None else seen, strict=True)
    bodies = [words.body(self.scene, self.style, p, users) for p, users in told]
    ids = [self.tokenizer.backend.encode(body) for body in bodies]
    length = np.asarray([len(i) for i in ids], np.int32)
    width = -(-int(length.max()) // self.bucket) * self.bucket
    prompt = np.full((len(ids), width), self.tokenizer.pad_id, np.int32)
    for row, i in zip(prompt, ids, strict=True):
      row[: len(i)] = i
    return prompt, length

  def log_policy(self, params, pulls: Sequence[Sequence[words.Pull]], seen=None) -> Array:
    """log pi(. | prompt) f32[B, K] after these pulls of B games."""
    return self._score(params, *self.prompts(pulls, seen))

  def player(self, params, greedy: bool = False) -> Choose:
    """Takes a draw of the policy, or its mode (the first of several)."""

    def choose(seen, action, reward, key):
      pulls = [list(zip(a, r, strict=True)) for a, r in zip(action, reward, strict=True)]
      log_pi = self.log_policy(params, pulls, seen)
      return jnp.argmax(log_pi, axis=1) if greedy else jax.random.categorical(key, log_pi)

    return choose
