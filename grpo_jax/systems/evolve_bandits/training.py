"""Training a language model on bandits in words: imitation of an oracle, and GRPO on regret.

A row is a game and a token is a choice of an arm (`rollout.bandit_transcripts`), so the methods
are those of every other loop and read nothing new:

  OFT   L = -E log pi(a_t | history) over games of an oracle (EVOLvE, arXiv:2410.06238): method
        sft. The labels are the learner's whole improving sequence, not those of its last policy.
  GRPO  reward of a game = -sum_t lost_t, advantage within the G games of a task, on all choices of
        the game: method grpo, one update a batch, so the ratio is 1.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import methods
from grpo_jax.envs.contextual.family import Family
from grpo_jax.systems.evolve_bandits import transcripts
from grpo_jax.systems.evolve_bandits.games import Games, Speaker, play_learner
from grpo_jax.tabular.learner import Learner
from grpo_jax.train.optimizer import make_optimizer
from grpo_jax.train.update import Cut, credit_of, init_state, make_update
from grpo_jax.types import Batch, Rollouts, rows_of

# draw(params, key) -> (games, G): N * G games, those of a task side by side.
Draw = Callable[[Any, jax.Array], tuple[Games, int]]


def batch_of(line: transcripts.Lines, games: Games, group: int = 1) -> tuple[Rollouts, Batch]:
  """Games [N * G, T] as the two layers of types.py; the reward is minus the game's regret."""
  action = jnp.asarray(games.action, jnp.int32)
  rows, steps = action.shape
  shape = (rows // group, group)
  yes = jnp.ones(shape, bool)
  rollouts = Rollouts(
    prompt=jnp.zeros(shape[0], jnp.int32),
    reward=-jnp.asarray(np.asarray(games.lost, np.float32).sum(axis=1)).reshape(shape),
    alive=yes,
    correct=~yes,
    truncated=~yes,
    length=jnp.full(shape, steps, jnp.int32),
  )
  extra = jax.tree.map(jnp.asarray, transcripts.text(line, games.action, games.reward))
  return rollouts, rows_of(rollouts, action, jnp.ones((rows, steps)), extra=extra)


def from_oracle(family: Family, learner: Learner, games: int, steps: int) -> Draw:
  """Fresh tasks of the family, played by the oracle."""

  def draw(params, key):
    del params
    task, luck = jax.random.split(key)
    tasks = jax.vmap(family.task)(jax.random.split(task, games))
    return play_learner(family, tasks, luck, steps, learner), 1

  return draw


def from_policy(speaker: Speaker, family: Family, tasks: int, group: int, steps: int) -> Draw:
  """`group` games of each of `tasks` fresh tasks, sampled from the policy."""
  game = transcripts.player(speaker, family, steps)

  def draw(params, key):
    task, luck = jax.random.split(key)
    drawn = jax.vmap(family.task)(jax.random.split(task, tasks))
    return game(params, jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), drawn), luck), group

  return draw


def train(
  speaker: Speaker, params: Any, method: str, draw: Draw, c: Any, optimizer: Any, key: jax.Array
) -> Iterator[tuple[dict[str, float], Any]]:
  """After each of c.steps updates (metrics, params); the parameters given are used up.

  `c` has steps, micro, lr and warmup; `optimizer` the other fields of `train.optimizer`.
  """
  chosen = methods.get(method)
  fields = optimizer.copy_and_resolve_references()
  with fields.unlocked():
    fields.lr, fields.warmup = c.lr, c.warmup
  tx, _ = make_optimizer(fields, c.steps)
  update = make_update(chosen, transcripts.forward(speaker), tx, Cut(micro=c.micro))
  credit = jax.jit(functools.partial(credit_of, chosen))
  state = init_state(jax.tree.map(jnp.array, params), tx, chosen, 1)
  line = transcripts.lines(speaker)
  for step in range(c.steps):
    games, group = draw(state.params, jax.random.fold_in(key, step))
    rollouts, batch = batch_of(line, games, group)
    made = credit(state.method_state, state.step, rollouts, batch)
    state, metrics, _ = update(state, rollouts, batch, made, jax.random.fold_in(key, step))
    told = {k: float(metrics[k]) for k in ("loss", "entropy", "grad_norm")}
    yield told | {"regret": -float(rollouts.reward.mean())}, state.params
