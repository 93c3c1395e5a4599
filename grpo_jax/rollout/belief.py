"""What the policy itself believes of the right answer before each turn: the need "answer_logp".

"Information Gain-based Policy Optimization", 2025 (paper 53): the answer is teacher-forced after
everything that precedes a turn. Here each turn of each rollout is a row of its own, so a batch of R
rows and U turns costs a pass over R U rows, without a gradient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core import turns
from grpo_jax.envs.world import Problem, World
from grpo_jax.rollout import prefixes
from grpo_jax.types import Batch


class Gold(NamedTuple):
  """What a right last turn says, one a prompt, and which tokens of it are the answer itself: what
  is written before the answer (the sign that it follows) is context, outside the mean."""

  tokens: Int[Array, "N L"]
  own: Bool[Array, "N L"]


def gold_of(world: World, problems: Problem) -> Gold:
  assert world.gold is not None
  return Gold(*jax.vmap(world.gold)(problems))


def answer_logp(
  gold: Gold, score, params: Any, batch: Batch, in_turn: bool = False
) -> Float[Array, "R U"]:
  """Mean log-probability of the answer's own tokens given all that precedes the turn.

  NaN for a turn that does not exist, and where nothing is the answer's own. score(params, batch) ->
  Fwd; no gradient. in_turn: R rows at a time, for models whose R U rows do not fit.
  """
  count, units = batch.unit_mask.shape
  per = count // gold.tokens.shape[0]
  each = lambda x: jnp.repeat(x, per, axis=0)
  answer, own = each(gold.tokens), each(gold.own.astype(jnp.float32))
  size = answer.shape[1]
  start, there = prefixes.starts(batch.unit, batch.mask, units)

  def believed(start: Int[Array, "R X"]) -> Float[Array, "R X"]:
    x = start.shape[1]
    copies = lambda a: jnp.broadcast_to(a[:, None], (count, x, size))
    tokens = prefixes.followed_by(batch.tokens, start, copies(answer))
    width = tokens.shape[2]
    place = jnp.arange(width, dtype=jnp.int32)[None, None] - start[:, :, None]
    asked = ((place >= 0) & (place < size)).astype(jnp.float32)
    flat = lambda a: a.reshape(count * x, width)
    logp = score(params, prefixes.scored_rows(flat(tokens), flat(asked), batch)).logp
    logp = jax.lax.stop_gradient(logp).reshape(count, x, width)
    column = start[:, :, None] + jnp.arange(size, dtype=jnp.int32)[None, None]
    return turns.belief(jnp.take_along_axis(logp, column, axis=2), copies(own))

  if in_turn:
    found = jax.lax.map(lambda s: believed(s[:, None])[:, 0], start.T).T
  else:
    found = believed(start)
  return jnp.where(there, found, jnp.nan)
