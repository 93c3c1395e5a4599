"""Tokens that completions of both signs share at the same place (GTPO).

A token of an active completion is in conflict if some completion with A > 0 and some with A < 0
have that same token at that same place. Only the unbroken run from the first token counts, and,
with places counted from the end, the unbroken run up to the last token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from grpo_jax.core import sequences, units
from grpo_jax.types import Batch, Rollouts


def shared(
  tokens: Int[Array, "N G T"],
  length: Int[Array, "N G"],
  positive: Bool[Array, "N G"],
  negative: Bool[Array, "N G"],
) -> Bool[Array, "N G T"]:
  """True at the conflicts among the first `length` tokens; completions with A = 0 have none.

  Compares all pairs of a group: N G G T comparisons, for G up to some tens.
  """
  valid = jnp.arange(tokens.shape[2], dtype=jnp.int32)[None, None] < length[..., None]
  same = tokens[:, :, None] == tokens[:, None]  # [N, G, G, T]

  def some(which):
    return jnp.any(same & (which[..., None] & valid)[:, None], axis=2)

  active = (positive | negative)[..., None] & valid
  return active & some(positive) & some(negative)


def initial_run(conflict: Bool[Array, "N G T"]) -> Bool[Array, "N G T"]:
  """prod_{u <= t} conflict_u: what is True from the first place on without a break."""
  return jax.lax.cumprod(conflict.astype(jnp.int32), axis=2) > 0


def runs(
  batch: Batch, rollouts: Rollouts, positive: Bool[Array, "N G"], negative: Bool[Array, "N G"]
) -> tuple[Bool[Array, "R T"], Bool[Array, "R T"]]:
  """(forward, backward): the token is in the run from the start, in the run up to the end.

  Places count trained tokens, the stop token among them. Rollouts lie as core/sequences.py says.
  """
  count = units.token_count(batch, rollouts)
  length = count.astype(jnp.int32)
  forward = sequences.position(batch)
  size = units.spread(units.of_owner(count, batch), batch).astype(jnp.int32)
  backward = jnp.maximum(size - 1 - forward, 0)

  def run(at):
    tokens = sequences.side_by_side(batch.tokens, at, batch, rollouts)
    return sequences.back(initial_run(shared(tokens, length, positive, negative)), at, batch)

  return run(forward), run(backward)
