"""In-context learners at work: online from nothing, offline from given data; weights never change.

Everything is over B tasks at once: `tasks` is stacked [B], `data` are transitions [B, H, ...].
Online, an action is drawn from the model's distribution (posterior sampling); offline, and with
`greedy`, it is the most likely one. A continuous action is tanh(output), always.

The context is frozen during an episode (DPT, arXiv:2306.14892): actions of an episode see earlier
episodes only, whose transitions follow each other in the context; when it is full, the oldest
episode leaves. Where there is but one state, all queries are the same and an episode is one step,
so the tokens are appended to a key-value cache instead of being read anew.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core.transitions import Transitions
from grpo_jax.errors import UserError
from grpo_jax.models.in_context import transformer as model
from grpo_jax.rollout.in_context.tokens import Layout, empty


class Pulls(NamedTuple):
  """T steps of a bandit."""

  action: Int[Array, "B T"]
  reward: Float[Array, "B T"]
  suboptimality: Float[Array, "B T"]  # expected reward of the optimal action minus that of this one
  entropy: Float[Array, "B T"]  # of the distribution the action was drawn from, in nats


class Episodes(NamedTuple):
  """E episodes of T steps."""

  reward: Float[Array, "B E T"]
  right: Bool[Array, "B E T"]  # discrete actions: it was the family's label


def outputs(layout: Layout, config, params, x: Float[Array, "B L W"]) -> Float[Array, "B L A"]:
  """Logits, or actions before tanh, at every token."""
  return model.apply(config, params, x, position=jnp.asarray(layout.position)).outputs


def answers(
  layout: Layout, config, params, query: Float[Array, "B S"], data: Transitions
) -> Float[Array, "B n A"]:
  """Outputs after 0, 1, ..., H transitions (0 .. H - 1 of a history)."""
  x = jax.vmap(layout.encode)(query, data)
  return outputs(layout, config, params, x)[:, layout.reads]


def choose(family, output: Float[Array, "B A"], key: Array, greedy: bool = False) -> Array:
  """Actions [B] (or [B, A]) from outputs."""
  if family.continuous:
    return jnp.tanh(output)
  if greedy:
    return jnp.argmax(output, axis=-1).astype(jnp.int32)
  return jax.random.categorical(key, output).astype(jnp.int32)


# ---- online --------------------------------------------------------------------------------------


def check_pulls(layout: Layout, steps: int) -> None:
  """Raises UserError, one line, for what `pull` cannot play."""
  family = layout.family
  if family.states != 1:
    raise UserError(f"family={family.name}: has several states; play episodes instead of pulls")
  if layout.kind != "transition":
    raise UserError(f"tokens={layout.kind!r}: {family.name} is read with tokens='transition'")
  if steps > layout.steps:
    raise UserError(f"eval.steps={steps}: the context has room for {layout.steps}; lower it")


def check_episodes(layout: Layout) -> None:
  """Raises UserError, one line, for what `play` cannot play."""
  family = layout.family
  if layout.history:
    raise UserError(
      f"tokens={layout.kind!r}: no frozen context to play with; use transition or split"
    )
  if not family.labelled:
    raise UserError(
      f"tokens={layout.kind!r}: {family.name} knows no optimal action; use tokens='episodes'"
    )
  if layout.steps % family.horizon:
    raise UserError(
      f"data.steps={layout.steps}: must be a multiple of the horizon of {family.name}, "
      f"{family.horizon}"
    )


def play_bandit(
  layout: Layout, config, params, tasks: Any, key: Array, steps: int, greedy: bool = False
) -> Pulls:
  """`steps` <= H pulls of bandits with one state, one token appended a pull.

  Raises UserError for a family with several states, tokens of another kind and too many steps.
  """
  check_pulls(layout, steps)
  family = layout.family
  count = jax.tree.leaves(tasks)[0].shape[0]
  first, rest = jax.random.split(key)
  state = jax.vmap(family.start)(tasks, jax.random.split(first, count))
  seen = jax.vmap(family.observe)(state)
  token = jax.vmap(lambda s: layout.encode(s, empty(family, layout.steps))[:1])(seen)
  cache = model.open_cache(config, count, layout.length)
  output, cache = model.extend(config, params, cache, token)

  def one(carry, key):
    output, cache = carry
    choice, outcome = jax.random.split(key)
    action = choose(family, output, choice, greedy)
    after, reward = jax.vmap(family.step)(tasks, state, action, jax.random.split(outcome, count))
    logp = jax.nn.log_softmax(output)
    now = Pulls(
      action=action,
      reward=reward,
      suboptimality=jax.vmap(family.lost)(tasks, state, action),
      entropy=-jnp.sum(jnp.exp(logp) * logp, axis=-1),
    )
    data = Transitions(
      state=seen[:, None],
      action=action[:, None],
      next_state=jax.vmap(family.observe)(after)[:, None],
      reward=reward[:, None],
    )
    output, cache = model.extend(config, params, cache, jax.vmap(layout.tokens)(data))
    return (output[:, -1], cache), now

  _, pulls = jax.lax.scan(one, (output[:, -1], cache), jax.random.split(rest, steps))
  return Pulls(*(jnp.moveaxis(x, 0, 1) for x in pulls))


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
  """Episodes one after the other, each with the earlier ones as its context.

  data: a context [B, n] to begin with; None: an empty one. Raises UserError where the context does
  not hold a whole number of episodes.
  """
  check_episodes(layout)

  def begin(data, state):
    act = frozen(layout, config, params, data, greedy)
    return state, lambda state, key: step(layout.family, tasks, state, act, key)

  return in_turn(layout.family, tasks, key, episodes, begin, layout.steps, data)


def explored(family, tasks: Any, key: Array) -> Transitions:
  """An episode [B, T] of uniform actions: of all, or in [-1, 1] where they are continuous."""
  count = jax.tree.leaves(tasks)[0].shape[0]
  first, go = jax.random.split(key)
  state = jax.vmap(family.start)(tasks, jax.random.split(first, count))

  def act(seen, key):
    if family.continuous:
      return jax.random.uniform(key, (count, family.actions), minval=-1.0, maxval=1.0)
    return jax.random.randint(key, (count,), 0, family.actions)

  one = lambda state, key: step(family, tasks, state, act, key)
  _, (data, _) = jax.lax.scan(one, state, jax.random.split(go, family.horizon))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), data)


def in_turn(
  family,
  tasks: Any,
  key: Array,
  episodes: int,
  begin: Callable[..., tuple[Any, Callable]],
  room: int,
  data: Transitions | None = None,
  ascending: bool = False,
) -> Episodes:
  """Episodes of B tasks, each with the transitions of the earlier ones, at most `room` of them.

  ascending: they are kept in the order of their returns, so the one that leaves is the least.

  begin(context [B, n], states [B]) -> (carry, one) of an episode, and one(carry, key) ->
  (carry, (transition, whether the action was the label)). data: as in `play`.
  """
  count = jax.tree.leaves(tasks)[0].shape[0]
  nothing = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), empty(family, 0))
  context = nothing if data is None else data

  def episode(data, key):
    first, go = jax.random.split(key)
    state = jax.vmap(family.start)(tasks, jax.random.split(first, count))
    carry, one = begin(data, state)
    _, (new, right) = jax.lax.scan(one, carry, jax.random.split(go, family.horizon))
    new = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), new)
    kept = noted(data, new, room)
    if ascending:
      kept = jax.vmap(lambda data: by_return(data, family.horizon))(kept)
    return kept, (new.reward, jnp.moveaxis(right, 0, 1))

  keys, parts = jax.random.split(key, episodes), []
  while len(parts) < episodes and context.reward.shape[1] < room:  # contexts that still grow
    context, out = episode(context, keys[len(parts)])
    parts.append(jax.tree.map(lambda x: x[None], out))
  if len(parts) < episodes:
    parts.append(jax.lax.scan(episode, context, keys[len(parts) :])[1])
  joined = jax.tree.map(lambda *x: jnp.moveaxis(jnp.concatenate(x), 0, 1), *parts)
  return Episodes(*joined)


def frozen(layout: Layout, config, params, data: Transitions, greedy: bool):
  """act(observation f32[B, S], key) -> actions [B]: the policy of an episode, whose context [B, n]
  does not change while it lasts."""
  filled = data.reward.shape[1]
  read = int(layout.reads[filled])
  whole = config.moe is not None and config.moe.hard  # routed by the mean of all tokens
  size = layout.lead + layout.each * filled if whole else read + 1
  position = jnp.asarray(layout.position[:size])

  def act(seen, key):
    x = jax.vmap(layout.encode)(seen, data)[:, :size]
    out = model.apply(config, params, x, position=position, last=not whole).outputs
    return choose(layout.family, out[:, read if whole else 0], key, greedy)

  return act


def step(family, tasks, state, act, key):
  """(state after, (transition, whether the action was the label)) of B tasks."""
  choice, outcome = jax.random.split(key)
  seen = jax.vmap(family.observe)(state)
  return taken(family, tasks, state, seen, act(seen, choice), outcome)


def taken(family, tasks, state, seen: Float[Array, "B S"], action: Array, key: Array):
  """As `step`, of actions that are chosen already."""
  outcomes = jax.random.split(key, seen.shape[0])
  after, reward = jax.vmap(family.step)(tasks, state, action, outcomes)
  new = Transitions(
    state=seen, action=action, next_state=jax.vmap(family.observe)(after), reward=reward
  )
  right = jnp.zeros(seen.shape[0], bool)
  if not family.continuous:
    right = action == jax.vmap(family.label)(tasks, state)
  return after, (new, right)


def noted(data: Transitions, new: Transitions, room: int) -> Transitions:
  """The context [B, n] after an episode [B, T]; beyond `room` transitions the oldest leave."""
  return jax.tree.map(lambda old, x: jnp.concatenate([old, x], axis=1)[:, -room:], data, new)


def by_return(data: Transitions, horizon: int) -> Transitions:
  """Whole episodes [n] of one task in ascending order of their returns, equal ones as they came."""
  fold = lambda x: x.reshape(-1, horizon, *x.shape[1:])
  order = jnp.argsort(jnp.sum(fold(data.reward), axis=1), stable=True)
  return jax.tree.map(lambda x: fold(x)[order].reshape(x.shape), data)


# ---- offline -------------------------------------------------------------------------------------


def with_given_data(
  layout: Layout, config, params, tasks: Any, states: Any, data: Transitions
) -> Float[Array, "B n"]:
  """Suboptimality of the greedy action in `states` [B] after 0, 1, ..., H of the transitions."""
  family = layout.family
  query = jax.vmap(family.observe)(states)
  output = answers(layout, config, params, query, data)
  action = choose(family, output, jax.random.key(0), greedy=True)
  each = jax.vmap(family.lost, in_axes=(None, None, 0))
  return jax.vmap(each)(tasks, states, action)
