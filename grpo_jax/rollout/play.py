"""Rollouts of a token world, inside jit: problems in, `Rollouts` and `Batch` out.

Worlds of one turn go through the language models' sampler. In worlds of several turns the world
writes between the policy's tokens, so every rollout steps through its whole budget.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core import rows
from grpo_jax.envs.world import STOP, Next, Problem, World
from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout import choose, sampler
from grpo_jax.types import Batch, Rollouts, rows_of

_SAMPLED = choose.Choice()


class Written(NamedTuple):
  """What was written, by whom, and the world's state at the end."""

  tokens: Int[Array, "N G T"]
  logp: Float[Array, "N G T"]
  mask: Bool[Array, "N G T"]  # the policy wrote it
  turn: Int[Array, "N G T"]
  length: Int[Array, "N G"]
  ended: Bool[Array, "N G"]
  state: Any = ()


def play(
  world: World,
  config: ModelConfig,
  params: Any,
  problems: Problem,
  ids: Int[Array, " N"],
  keys: Array,
  *,
  group: int,
  choice: choose.Choice = _SAMPLED,
) -> tuple[Rollouts, Batch]:
  """`group` rollouts of each problem; keys: one typed key a problem. Units are turns."""
  run = _turns if world.step else _one_turn
  e = run(world, config, params, problems, keys, group, choice)
  score = jax.vmap(jax.vmap(world.score, in_axes=(None, 0, 0, 0)))
  verdict = score(problems, e.state, e.tokens, e.length)
  rollouts = Rollouts(
    prompt=ids,
    reward=verdict.reward,
    alive=jnp.ones(verdict.reward.shape, bool),
    correct=verdict.correct,
    truncated=~e.ended,
    length=e.length,
    parts=verdict.parts,
  )
  return rollouts, to_batch(world, problems, rollouts, e, verdict.turn_reward)


def to_batch(world, problems, rollouts, e: Written, turn_reward=None) -> Batch:
  """A row a rollout, after its shared prompt."""
  size = rollouts.reward.size
  flat = lambda x: x.reshape(size, *x.shape[2:])
  batch = rows_of(
    rollouts,
    flat(e.tokens),
    flat(e.mask),
    logp_sampler=flat(e.logp),
    prompt_tokens=problems.tokens,
    prompt_length=problems.length,
  )
  if world.step is None:
    return batch
  turn, (n, g) = flat(e.turn), rollouts.reward.shape
  own = (turn[:, :, None] == jnp.arange(world.turns)[None, None]) & (batch.mask > 0)[:, :, None]
  return batch.replace(
    unit=turn,
    unit_mask=jnp.any(own, axis=1).astype(jnp.float32),
    owner=rows.owners(n, g, world.turns),
    unit_reward=None if turn_reward is None else flat(turn_reward),
  )


def _one_turn(world, config, params, problems, keys, group, choice) -> Written:
  out = sampler.sample(
    config, params, problems.tokens, problems.length, keys,
    group=group, budget=world.answer, stop_ids=(STOP,), choice=choice,
  )  # fmt: skip
  mask = jnp.arange(world.answer)[None, None] < out.length[..., None]
  return Written(out.tokens, out.logp, mask, jnp.zeros_like(out.tokens), out.length, out.stopped)


class _Live(NamedTuple):
  """What the loop over tokens carries: first what `sampler.decode` knows."""

  step: Array  # i32[]
  token: Array  # i32[N, G] the token to feed next
  fed: Array  # i32[N, G] tokens written so far
  k: Any
  v: Any
  logits: Array  # f32[N, G, V]
  state: Any
  next: Next  # [N, G]


def _turns(world, config, params, problems, keys, group, choice) -> Written:
  n, t = problems.tokens.shape[0], world.answer
  params, prefix, cache, last = sampler.open_cache(
    config, params, problems.tokens, problems.length, group, t
  )
  first = sampler.project(params, last)
  start = jax.vmap(world.start)(problems)
  copies = lambda x: jnp.broadcast_to(x[:, None], (n, group, *x.shape[1:]))
  state, following = jax.tree.map(copies, start)
  step_world = jax.vmap(jax.vmap(world.step, in_axes=(None, 0, 0)))

  def one(live: _Live, u):
    flat = live.logits.reshape(n * group, -1)
    token, logp = sampler.choose_with_logp(flat, u.reshape(-1), choice)
    token, logp = token.reshape(n, group), logp.reshape(n, group)
    alive = ~live.next.done
    mine = alive & (live.next.force < 0)
    token = jnp.where(alive, jnp.where(mine, token, live.next.force), 0)
    wrote = (token, jnp.where(mine, logp, 0), mine, live.next.turn, alive)
    state, following = step_world(problems, live.state, token)
    keep = lambda new, old: jnp.where(alive.reshape(alive.shape + (1,) * (new.ndim - 2)), new, old)
    state, following = jax.tree.map(keep, (state, following), (live.state, live.next))
    live = live._replace(token=token, fed=live.fed + 1, state=state, next=following)
    x, live = sampler.decode(config, params, prefix, live)
    return live._replace(step=live.step + 1, logits=sampler.project(params, x)), wrote

  live = _Live(
    step=jnp.int32(0),
    token=jnp.zeros((n, group), jnp.int32),
    fed=jnp.zeros((n, group), jnp.int32),
    k=cache,
    v=cache,
    logits=copies(first),
    state=state,
    next=following,
  )
  draws = sampler.uniforms(keys, jnp.arange(group), jnp.arange(t))
  live, wrote = jax.lax.scan(one, live, jnp.moveaxis(draws, 2, 0))
  token, logp, mine, turn, alive = (jnp.moveaxis(x, 0, -1) for x in wrote)
  return Written(
    tokens=token,
    logp=logp,
    mask=mine,
    turn=jnp.clip(turn, 0, world.turns - 1),
    length=jnp.sum(alive, axis=-1, dtype=jnp.int32),
    ended=live.next.done,
    state=live.state,
  )


def demonstrate(world: World, problems: Problem, ids: Int[Array, " N"]) -> tuple[Rollouts, Batch]:
  """The worlds' own solutions as one rollout a problem, scored by the verifier."""
  tokens = jax.vmap(world.solution)(problems)
  n, t = tokens.shape
  if world.step is None:
    stops = tokens == STOP
    length = jnp.where(jnp.any(stops, axis=1), jnp.argmax(stops, axis=1) + 1, t).astype(jnp.int32)
    mask = jnp.arange(t)[None] < length[:, None]
    turn, state, ended = jnp.zeros_like(tokens), (), jnp.ones(n, bool)
  else:
    state, mask, turn, length, ended = jax.vmap(lambda p, x: _replay(world, p, x))(problems, tokens)
  e = Written(tokens, jnp.zeros(tokens.shape), mask, turn, length, ended, state)
  verdict = jax.vmap(world.score)(problems, state, tokens, length)
  e = jax.tree.map(lambda x: x[:, None], e)
  rollouts = Rollouts(
    prompt=ids,
    reward=verdict.reward[:, None],
    alive=jnp.ones((n, 1), bool),
    correct=verdict.correct[:, None],
    truncated=~e.ended,
    length=e.length,
  )
  turn_reward = None if verdict.turn_reward is None else verdict.turn_reward[:, None]
  return rollouts, to_batch(world, problems, rollouts, e, turn_reward)


def with_demonstrations(
  world: World, problems: Problem, rollouts: Rollouts, batch: Batch
) -> tuple[Rollouts, Batch]:
  """The worlds' own solutions as one more, given, rollout after those of each problem."""
  shown, more = demonstrate(world, problems, rollouts.prompt)
  more = more.replace(logp_sampler=jnp.full(more.tokens.shape, jnp.nan))
  whole, batch = rows.join_rollouts(rollouts.replace(parts=None), batch, shown, more)
  (n, g), last = whole.reward.shape, rollouts.reward.shape[1]
  given = jnp.broadcast_to(jnp.arange(g)[None] == last, (n, g))
  return whole.replace(given=given), batch


def _replay(world, problem, tokens):
  """Which of the tokens of one episode the policy wrote, by stepping the world through them."""

  def one(carry, token):
    state, following = carry
    alive = ~following.done
    wrote = (alive & (following.force < 0), jnp.clip(following.turn, 0, world.turns - 1), alive)
    new = world.step(problem, state, token)
    return jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, carry), wrote

  (state, following), (mask, turn, alive) = jax.lax.scan(one, world.start(problem), tokens)
  return state, mask, turn, jnp.sum(alive, dtype=jnp.int32), following.done
