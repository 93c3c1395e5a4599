"""The plan `Chain`: completions whose segments are valued by sampling on (paper 16, SPO-chain).

The completions are those of the plan `Flat`. The state at a cut is the prompt and what was written
before the cut; it becomes a prompt of its own, from which `samples` completions are drawn by the
same sampler, within the tokens that the budget leaves. One that does not stop is worth 0.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from grpo_jax.core import segments
from grpo_jax.envs.world import PAD, STOP
from grpo_jax.errors import UserError
from grpo_jax.rollout import flat, prefixes, sampler
from grpo_jax.rollout import play as world_play
from grpo_jax.rollout.collect import Ask, Collected, bucket, complete, judge, prompt_keys, text_of
from grpo_jax.rollout.plans import Draw, Game, Where, observe
from grpo_jax.types import Batch, Chain, Flat

LOOPS = ("llm", "fused")
SUPPLIES = ("unit_reward",)
_OWN_KEYS = 1 << 20  # keys of the continuations: those of completions count up from 0


def check(plan: Chain, where: Where) -> None:
  if where.turns:
    raise UserError(f"plan Chain: {where.name} has turns; use a world of one turn, or Flat")
  if plan.interval < 1 or plan.samples < 1:
    raise UserError(f"interval={plan.interval}, samples={plan.samples}: give numbers from 1")


def play(plan: Chain, game: Game) -> Draw:
  """Units are segments, at most 1 + ceil(T / interval). `unit_reward` is the value of the state
  that a segment starts from, NaN for unit 0, which stands before the first cut, and where no
  segment is. Equal prefixes of a prompt are estimated once and share the estimate; their tokens are
  watched.
  """
  rollouts, batch = world_play.play(
    game.world, game.config, game.params, game.problems, game.ids, game.keys, group=game.group
  )
  batch, start, there = cut(plan, batch, game.world.answer)
  value, sampled = state_values(plan, game, batch.tokens, start[:, 1:], there[:, 1:])
  batch = batch.replace(unit_reward=_rewards(value, there))
  watched = observe(rollouts, jnp.sum(batch.mask) + sampled.astype(jnp.float32))
  return Draw(rollouts, batch, game.problems, watched)


def cut(plan: Chain, batch: Batch, budget: int) -> tuple[Batch, Array, Array]:
  """(the batch in segments, start i32[R, U] of each, whether there is one)."""
  assert batch.logp_sampler is not None
  unsure = jnp.exp(batch.logp_sampler) < plan.cut
  unit = segments.cut_points(unsure, batch.mask, plan.interval)
  start, there = prefixes.starts(unit, batch.mask, 1 + -(-budget // plan.interval))
  owner = jnp.broadcast_to(batch.owner, there.shape)
  return batch.replace(unit=unit, unit_mask=there.astype(jnp.float32), owner=owner), start, there


def _rewards(value, there):
  before = jnp.full((there.shape[0], 1), jnp.nan, jnp.float32)
  return jnp.concatenate([before, jnp.where(there[:, 1:], value, jnp.nan)], axis=1)


def state_values(plan: Chain, game: Game, tokens, start, asked):
  """(value f32[R, K] of the states before the K cuts of a row, sampled tokens)."""
  world, problems, samples = game.world, game.problems, plan.samples
  (rows, cuts), (n, p), t = start.shape, problems.tokens.shape, world.answer
  per = rows // n * cuts  # states a prompt
  first = _first_equal(tokens, start, asked, n)  # i32[N, per]
  alone = asked.reshape(n, per) & (first == jnp.arange(per, dtype=jnp.int32)[None])

  states = lambda x: jnp.repeat(x, per, axis=0)
  written = jnp.broadcast_to(tokens[:, None], (rows, cuts, t)).reshape(rows * cuts, t)
  at = start.reshape(-1)
  length = states(problems.length)
  prompt = prefixes.followed_by(states(problems.tokens), length[:, None], written[:, None])[:, 0]
  column = jnp.arange(p + t, dtype=jnp.int32)[None]
  prompt = jnp.where(column < (length + at)[:, None], prompt, PAD)

  fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
  own = fold(game.keys, _OWN_KEYS + jnp.arange(per)).reshape(-1)
  out = sampler.sample(
    game.config, game.params, prompt, length + at, own,
    group=samples, budget=t, stop_ids=(STOP,),
  )  # fmt: skip

  left = (t - at)[:, None]
  took = jnp.minimum(out.length, left)
  stopped = out.stopped & (out.length <= left)
  again = jnp.broadcast_to(at[:, None], out.length.shape)
  whole = prefixes.followed_by(written, again, out.tokens)[:, :, :t]
  whole = whole.reshape(n, per * samples, t)
  reached = (again + took).reshape(n, -1)
  score = jax.vmap(jax.vmap(world.score, in_axes=(None, None, 0, 0)), in_axes=(0, None, 0, 0))
  reward = score(problems, (), whole, reached).reward.reshape(n, per, samples)
  value = jnp.mean(jnp.where(stopped.reshape(reward.shape), reward, 0), axis=2)
  value = jnp.take_along_axis(value, first, axis=1).reshape(rows, cuts)
  took = jnp.sum(took, axis=1, dtype=jnp.int32).reshape(n, per)
  return value, jnp.sum(jnp.where(alone, took, 0))


def _first_equal(
  tokens: Int[Array, "R T"], start: Int[Array, "R K"], asked: Bool[Array, "R K"], n: int
) -> Int[Array, "N X"]:
  """For each of the X states of a prompt, the first with the same prefix."""
  (rows, cuts), t = start.shape, tokens.shape[1]
  place = jnp.arange(t, dtype=jnp.int32)[None, None]
  prefix = jnp.where(place < start[:, :, None], tokens[:, None], -1)
  prefix = prefix.reshape(n, rows // n * cuts, t)
  same: Array = jnp.all(prefix[:, :, None] == prefix[:, None, :], axis=3)
  same = same & asked.reshape(n, 1, -1)
  return jnp.argmax(same, axis=2).astype(jnp.int32)


# ---- language models -----------------------------------------------------------------------------


def collect(plan: Chain, ask: Ask) -> Collected:
  """As in token worlds; the texts that are judged are prefix and continuation together."""
  got = flat.collect(Flat(), ask)
  start = time.monotonic()
  batch, at, there = _cut(plan, got.batch, ask.sampling.budget)
  at, there, tokens = (np.asarray(x) for x in (at, there, batch.tokens))
  per = len(tokens) // len(got.problems)
  states: dict[tuple, list[tuple[int, int]]] = {}  # (prompt, prefix) -> the units it stands before
  for row, unit in np.argwhere(there[:, 1:]).tolist():
    prefix = tokens[row, : at[row, unit + 1]]
    states.setdefault((row // per, prefix.tobytes()), []).append((row, unit))
  value = np.full((len(tokens), there.shape[1] - 1), np.nan, np.float32)
  sampled, scores, verify = 0, [], 0.0
  keys = list(states)
  for first in range(0, len(keys), ask.count):
    some = keys[first : first + ask.count]
    known, took, found, seconds = _continued(plan, ask, got, some, first)
    for key, x in zip(some, known, strict=True):
      for row, unit in states[key]:
        value[row, unit] = x
    sampled, verify = sampled + took, verify + seconds
    scores.append(found)
  spent = time.monotonic() - start
  batch = batch.replace(unit_reward=_rewards(value, there))
  failed = {k: n + sum(s.failed[k] for s in scores) for k, n in got.failed.items()}
  return dataclasses.replace(
    got,
    batch=jax.tree.map(np.asarray, batch),
    failed=failed,
    errors=got.errors + tuple(e for s in scores for e in s.errors),
    seconds={
      "sample": got.seconds["sample"] + spent - verify,
      "verify": got.seconds["verify"] + verify,
    },
    counts={"states": len(states), "tokens_of_values": sampled},
  )


_cut = jax.jit(cut, static_argnums=(0, 2))


def _continued(plan: Chain, ask: Ask, got: Collected, some: list, first: int):
  """(value of each state (prompt, prefix), sampled tokens, the scores, seconds of judging)."""
  s = ask.sampling
  prefix = [np.frombuffer(raw, np.int32) for _, raw in some]
  where = [n for n, _ in some]
  prompt_tokens, prompt_length = (
    np.asarray(x) for x in (got.batch.prompt_tokens, got.batch.prompt_length)
  )
  ids = [
    np.concatenate([prompt_tokens[n, : prompt_length[n]], p])
    for n, p in zip(where, prefix, strict=True)
  ]
  full = ids + [ids[0]] * (ask.count - len(ids))  # one shape a bucket
  prompt = np.zeros((len(full), bucket(max(map(len, full)))), np.int32)
  for row, x in zip(prompt, full, strict=True):
    row[: len(x)] = x
  length = np.asarray([len(x) for x in full], np.int32)
  problems = [got.problems[n] for n in where]
  keys = prompt_keys(
    s, problems + problems[:1] * (len(full) - len(some)), ask.step, _OWN_KEYS + first
  )
  tokens, _, reached, stopped = complete(s, ask.params, prompt, length, keys, plan.samples)
  tokens, reached, stopped = tokens[: len(some)], reached[: len(some)], stopped[: len(some)]

  left = np.asarray([s.budget - len(p) for p in prefix])[:, None]
  took = np.minimum(reached, left)
  done = stopped & (reached <= left)
  whole = [
    text_of(s, np.concatenate([p, row[: took[i, j]]]))
    for i, p in enumerate(prefix)
    for j, row in enumerate(tokens[i])
  ]
  start = time.monotonic()
  sizes = (took + s.budget - left).reshape(-1).tolist()
  scores = judge(ask.pool, whole, [p for p in problems for _ in range(plan.samples)], sizes)
  reward = np.where(scores.alive, scores.reward, 0).reshape(took.shape)
  value = np.where(done, reward, 0).mean(axis=1)
  return value, int(took.sum()), scores, time.monotonic() - start
