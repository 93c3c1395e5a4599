"""What an in-context learner is examined on, and its marks: online from nothing, offline on data.

The exam is made once: the same tasks, contexts and random numbers for all seeds and all steps, and
for the oracles of bandits.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core.transitions import Transitions
from grpo_jax.errors import UserError
from grpo_jax.rollout.in_context import exact_posterior
from grpo_jax.rollout.in_context import history as in_context_history
from grpo_jax.rollout.in_context import oracles as bandit_oracles
from grpo_jax.rollout.in_context import play as in_context
from grpo_jax.rollout.in_context.tokens import Layout
from grpo_jax.tabular.posterior import total_variation
from grpo_jax.train.programs.in_context_data import Source, contexts

_KEY = 20_000  # seed of the exam's own random numbers
_PLAYS = 32  # of each task by an oracle that explores: one play says little


@dataclasses.dataclass(frozen=True)
class Size:
  """UserError for values out of range."""

  tasks: int = 200  # of bandits and other families without held-out tasks; else all held-out ones
  steps: int = 0  # online pulls of a bandit; 0: as many as the context holds
  episodes: int = 5  # online episodes of other families
  greedy: bool = False  # online actions too are the most likely ones
  explore: bool = False  # online episodes begin with a context of one of uniform actions, not empty

  def __post_init__(self):
    for name, least in (("tasks", 1), ("steps", 0), ("episodes", 1)):
      if getattr(self, name) < least:
        raise UserError(f"eval.{name}={getattr(self, name)}: must be at least {least}")


class Exam(NamedTuple):
  tasks: Any  # stacked [B]
  states: Any  # a query state for each
  data: Transitions  # a pretraining context for each, [B, H]
  posterior: Float[Array, "B n A"] | None  # P(best arm | prefix) where it is known exactly
  best: Float[Array, " B"]  # expected return of an optimal episode


def is_bandit(layout: Layout) -> bool:
  """One state: pulls with a cache, and regret against oracles."""
  return layout.family.states == 1


def check(layout: Layout, size: Size) -> None:
  """Raises UserError for an exam that the family or the tokens do not allow."""
  if is_bandit(layout):
    in_context.check_pulls(layout, size.steps)
    if size.explore:
      raise UserError(f"eval.explore: {layout.family.name} is played pull by pull; set it to False")
  elif layout.history:
    in_context_history.check(layout)
  else:
    in_context.check_episodes(layout)


def make(
  layout: Layout, size: Size, params: dict | None = None, source: Source | None = None
) -> Exam:
  """params: what the family was made with, for the exact posterior; None: without it. source: of
  contexts of held-out tasks; None: the family's."""
  family = layout.family
  keys = jax.random.split(jax.random.key(_KEY), 3)
  if family.heldout is None:
    tasks = jax.vmap(family.task)(jax.random.split(keys[0], size.tasks))
  else:
    tasks = jax.tree.map(jnp.asarray, family.heldout)
  count = jax.tree.leaves(tasks)[0].shape[0]
  each = lambda key: jax.random.split(key, count)
  data = contexts(family, tasks, each(keys[1]), layout.steps, source)
  known = None if params is None else bandit_oracles.posterior(family, params, data)
  states = jax.vmap(family.query)(tasks, each(keys[2]))
  return Exam(tasks, states, data, known, jax.vmap(family.best)(tasks))


def evaluate(layout: Layout, config, params, exam: Exam, size: Size) -> dict[str, Array]:
  """Marks by task, of one model.

  Bandits: "online" [B, T] suboptimality of each pull, "entropy" [B, T] in nats of the distribution
  it was drawn from, "offline" [B, H + 1] suboptimality of the greedy arm after 0..H transitions,
  and "distance" [B, H + 1], total variation to exact posterior sampling, where that is known.
  Others: "return" [B, E] of online episodes (that of uniform actions is none of them), "right"
  [B, E] the share of actions that were the family's label (if it has labels), "offline" [B] the
  return of one greedy episode with a pretraining context (not of histories, where the model goes on
  with its own).
  """
  key = jax.random.key(_KEY + 1)
  if not is_bandit(layout):
    return _episodes(layout, config, params, exam, size, key)
  steps = size.steps or layout.steps
  pulls = in_context.play_bandit(layout, config, params, exam.tasks, key, steps, size.greedy)
  marks = {
    "online": pulls.suboptimality,
    "entropy": pulls.entropy,
    "offline": in_context.with_given_data(
      layout, config, params, exam.tasks, exam.states, exam.data
    ),
  }
  if exam.posterior is not None:
    query = jax.vmap(layout.family.observe)(exam.states)
    output = in_context.answers(layout, config, params, query, exam.data)
    marks["distance"] = total_variation(jax.nn.softmax(output), exam.posterior)
  return marks


def _episodes(layout, config, params, exam, size, key):
  online, given = jax.random.split(key)
  greedy, history = size.greedy, layout.history
  play = in_context_history.play if history else in_context.play
  begin = None
  if size.explore:
    begin = in_context.explored(layout.family, exam.tasks, jax.random.fold_in(online, 0))
  played = play(layout, config, params, exam.tasks, online, size.episodes, begin, greedy)
  marks = {"return": jnp.sum(played.reward, axis=2)}
  if layout.family.labelled:
    marks["right"] = jnp.mean(played.right.astype(jnp.float32), axis=2)
  if history:
    return marks
  once = in_context.play(layout, config, params, exam.tasks, given, 1, data=exam.data, greedy=True)
  return marks | {"offline": jnp.sum(once.reward, axis=2)[:, 0]}


def oracles(layout: Layout, params: dict, exam: Exam, size: Size) -> dict[str, dict[str, Array]]:
  """Of bandits {"online": {learner: [B, T]}, "offline": {rule: [B, H + 1]}}, suboptimality on the
  exam's tasks; of others {"return": {learner: [B, E]}}, by episode. What there is not is {}."""
  family, steps = layout.family, size.steps or layout.steps
  key, other = jax.random.split(jax.random.key(_KEY + 2))
  if not is_bandit(layout):
    if family.recall is None or family.heldout is None:
      return {"online": {}, "offline": {}, "return": {}}
    play = lambda key: exact_posterior.play(family, exam.tasks, key, size.episodes, layout.steps)
    returns = jax.vmap(lambda key: jnp.sum(play(key).reward, axis=2))(jax.random.split(key, _PLAYS))
    known = {"exact posterior": jnp.mean(returns, axis=0)}
    return {"online": {}, "offline": {}, "return": known}
  return {
    "return": {},
    "online": bandit_oracles.online(family, params, exam.tasks, key, steps),
    "offline": bandit_oracles.offline(family, params, exam.tasks, exam.states, exam.data, other),
  }
