"""What the policy itself believes of the right answer before each turn (card 53).

"Information Gain-based Policy Optimization", 2025: the answer is teacher-forced after everything
that precedes a turn. Here each turn of each rollout is a row of its own, so a batch of R rows and U
turns costs a pass over R U rows, without a gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core import turns
from grpo_jax.envs.world import Problem, World
from grpo_jax.rollout import prefixes
from grpo_jax.types import Batch


def answer_logp(
  world: World, forward, params: Any, problems: Problem, batch: Batch
) -> Float[Array, "R U"]:
  """Mean log-probability of the answer's own tokens given all that precedes the turn.

  Whatever `World.gold` writes before the answer (the sign that it follows) is context, outside the
  mean. NaN for a turn that does not exist. `forward(params, batch) -> Fwd`; no gradient.
  """
  assert world.gold is not None
  gold, own = jax.vmap(world.gold)(problems)  # [N, L]
  count, units = batch.unit_mask.shape
  per = count // gold.shape[0]
  each = lambda x: jnp.broadcast_to(jnp.repeat(x, per, axis=0)[:, None], (count, units, x.shape[1]))
  gold, own = each(gold), each(own.astype(jnp.float32))
  start, there = prefixes.starts(batch.unit, batch.mask, units)

  tokens = prefixes.followed_by(batch.tokens, start, gold)
  width, size = tokens.shape[2], gold.shape[2]
  place = jnp.arange(width, dtype=jnp.int32)[None, None] - start[:, :, None]
  asked = ((place >= 0) & (place < size)).astype(jnp.float32)
  flat = lambda x: x.reshape(count * units, width)
  logp = forward(params, prefixes.rows(flat(tokens), flat(asked), batch)).logp
  logp = jax.lax.stop_gradient(logp).reshape(count, units, width)
  column = start[:, :, None] + jnp.arange(size, dtype=jnp.int32)[None, None]
  found = turns.belief(jnp.take_along_axis(logp, column, axis=2), own)
  return jnp.where(there, found, jnp.nan)
