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

from grpo_jax.core.bandits import Counts
from grpo_jax.data import verbal_bandits as words
from grpo_jax.envs.contextual.family import Family
from grpo_jax.models import choices, policy
from grpo_jax.models.choices import Names
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.tabular.learner import Learner


class Games(NamedTuple):
  """B games of T pulls."""

  action: Any  # i32[B, T]
  reward: Any  # f32[B, T]
  lost: Any  # f32[B, T] expected reward of the best arm minus that of this one


# choose(action [B, t], reward [B, t], key) -> action [B]
Choose = Callable[[np.ndarray, np.ndarray, Array], Array]


def keys_at(key: Array, step, games: int) -> tuple[Array, Array]:
  """(key of the choices, keys [B] of the rewards) of one step."""
  choice, outcome = jax.random.split(jax.random.fold_in(key, step))
  return choice, jax.random.split(outcome, games)


def pay(family: Family, tasks: Any, action: Array, keys: Array) -> tuple[Array, Array]:
  """(rewards, losses) [B] of these pulls; a bandit's state is constant."""

  def one(task, action, key):
    state = family.start(task, key)
    return family.step(task, state, action, key)[1], family.lost(task, state, action)

  return jax.vmap(one)(tasks, action, keys)


_pay = jax.jit(pay, static_argnums=0)


def play(family: Family, tasks: Any, key: Array, steps: int, choose: Choose) -> Games:
  """`steps` pulls of tasks stacked [B]."""
  games = jax.tree.leaves(tasks)[0].shape[0]
  out = Games(np.zeros((games, steps), np.int32), *(np.zeros((games, steps)) for _ in range(2)))
  for t in range(steps):
    choice, outcome = keys_at(key, t, games)
    out.action[:, t] = choose(out.action[:, :t], out.reward[:, :t], choice)
    reward, loss = _pay(family, tasks, jnp.asarray(out.action[:, t]), outcome)
    out.reward[:, t], out.lost[:, t] = reward, loss
  return out


def by_learner(learner: Learner, arms: int) -> Choose:
  """A learner whose memory is `Counts`."""
  act = jax.jit(jax.vmap(learner.act))

  def choose(action, reward, key):
    hot = np.eye(arms, dtype=np.float32)[action]
    counts = Counts(count=hot.sum(1), total=(hot * reward[..., None].astype(np.float32)).sum(1))
    return act(counts, jax.random.split(key, len(action)))

  return choose


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

  def prompts(self, pulls: Sequence[Sequence[words.Pull]]) -> tuple[np.ndarray, np.ndarray]:
    """(ids i32[B, P] padded on the right, length i32[B]) of the bodies after these pulls."""
    bodies = [words.body(self.scene, self.style, p) for p in pulls]
    ids = [self.tokenizer.backend.encode(body) for body in bodies]
    length = np.asarray([len(i) for i in ids], np.int32)
    width = -(-int(length.max()) // self.bucket) * self.bucket
    prompt = np.full((len(ids), width), self.tokenizer.pad_id, np.int32)
    for row, i in zip(prompt, ids, strict=True):
      row[: len(i)] = i
    return prompt, length

  def log_policy(self, params, pulls: Sequence[Sequence[words.Pull]]) -> Array:
    """log pi(. | prompt) f32[B, K] after these pulls of B games."""
    return self._score(params, *self.prompts(pulls))

  def player(self, params, greedy: bool = False) -> Choose:
    """Takes a draw of the policy, or its mode (the first of several)."""

    def choose(action, reward, key):
      pulls = [list(zip(a, r, strict=True)) for a, r in zip(action, reward, strict=True)]
      log_pi = self.log_policy(params, pulls)
      return jnp.argmax(log_pi, axis=1) if greedy else jax.random.categorical(key, log_pi)

    return choose
