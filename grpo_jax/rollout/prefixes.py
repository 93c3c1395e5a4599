"""Where the units of a row begin, and the text before them."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.types import Batch


def starts(
  unit: Int[Array, "R T"], mask: Float[Array, "R T"], units: int
) -> tuple[Int[Array, "R U"], Bool[Array, "R U"]]:
  """(column of the first trained token of each unit, whether the unit has any); 0 without one."""
  own = unit[:, :, None] == jnp.arange(units, dtype=unit.dtype)[None, None]
  own = own & (mask > 0)[:, :, None]
  return jnp.argmax(own, axis=1).astype(jnp.int32), jnp.any(own, axis=1)


def followed_by(
  tokens: Int[Array, "R T"], start: Int[Array, "R U"], text: Int[Array, "R U L"]
) -> Int[Array, "R U T+L"]:
  """tokens[r, :start[r, u]], then text[r, u], then zeros."""
  size = text.shape[2]
  place = jnp.arange(tokens.shape[1] + size, dtype=jnp.int32)[None, None] - start[:, :, None]
  shape = (*start.shape, place.shape[2])
  before = jnp.broadcast_to(jnp.pad(tokens, ((0, 0), (0, size)))[:, None], shape)
  after = jnp.take_along_axis(text, jnp.clip(place, 0, size - 1), axis=2)
  return jnp.where(place < 0, before, jnp.where(place < size, after, 0))


def scored_rows(tokens: Int[Array, "R T"], mask: Float[Array, "R T"], like: Batch) -> Batch:
  """A batch to be scored: these rows after the prompts of `like`, as many of each prompt."""
  count = tokens.shape[0]
  return Batch(
    tokens=tokens,
    mask=mask,
    unit=jnp.zeros(tokens.shape, jnp.int32),
    unit_mask=jnp.ones((count, 1), jnp.float32),
    owner=jnp.arange(count, dtype=jnp.int32)[:, None],
    prompt_tokens=like.prompt_tokens,
    prompt_length=like.prompt_length,
  )
