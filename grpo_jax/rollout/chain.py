"""Completions whose segments are valued by sampling on, inside jit: the plan `Chain` (card 16).

The completions are those of the plan `Flat`. The state at a cut is the prompt and what was written
before the cut; it becomes a prompt of its own, from which `samples` completions are drawn by the
same sampler, within the tokens that the budget leaves. One that does not stop is worth 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from grpo_jax.core import segments
from grpo_jax.envs.world import PAD, STOP, Problem, World
from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout import play as flat
from grpo_jax.rollout import prefixes, sampler
from grpo_jax.types import Batch, Chain, Rollouts

_OWN_KEYS = 1 << 20  # keys of the continuations: those of completions count up from 0


def check(world: World, plan: Chain) -> None:
  """Raises UserError where the plan and the world do not go together."""
  if world.step is not None:
    raise UserError(f"plan Chain: world {world.name} has turns; use a world of one turn, or Flat")
  if plan.interval < 1 or plan.samples < 1:
    raise UserError(f"interval={plan.interval}, samples={plan.samples}: give numbers from 1")


def play(
  world: World,
  config: ModelConfig,
  params: Any,
  problems: Problem,
  ids: Int[Array, " N"],
  keys: Array,
  *,
  group: int,
  plan: Chain,
) -> tuple[Rollouts, Batch, Int[Array, ""]]:
  """(rollouts, batch, tokens that the continuations took); keys: one typed key a problem.

  Units are segments, at most 1 + ceil(T / interval). `unit_reward` is the value of the state that a
  segment starts from, NaN for unit 0, which stands before the first cut, and where no segment is.
  Equal prefixes of a prompt are estimated once and share the estimate.
  """
  check(world, plan)
  rollouts, batch = flat.play(world, config, params, problems, ids, keys, group=group)
  assert batch.logp_sampler is not None
  unsure = jnp.exp(batch.logp_sampler) < plan.cut
  unit = segments.cut_points(unsure, batch.mask, plan.interval)
  units = 1 + -(-world.answer // plan.interval)
  start, there = prefixes.starts(unit, batch.mask, units)
  asked = there[:, 1:]
  value, sampled = _values(
    world, config, params, problems, keys, batch.tokens, start[:, 1:], asked, plan.samples
  )
  before = jnp.full((start.shape[0], 1), jnp.nan, jnp.float32)
  batch = batch.replace(
    unit=unit,
    unit_mask=there.astype(jnp.float32),
    owner=jnp.broadcast_to(batch.owner, there.shape),
    unit_reward=jnp.concatenate([before, jnp.where(asked, value, jnp.nan)], axis=1),
  )
  return rollouts, batch, sampled


def _values(world, config, params, problems, keys, tokens, start, asked, samples: int):
  """(value f32[R, K] of the states before the K cuts of a row, sampled tokens)."""
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
  own = fold(keys, _OWN_KEYS + jnp.arange(per)).reshape(-1)
  out = sampler.sample(
    config, params, prompt, length + at, own,
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
