"""Shapes of real models, and the same structure small enough for interpret mode."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Shapes(NamedTuple):
  hidden: jax.ShapeDtypeStruct
  head: jax.ShapeDtypeStruct
  target: jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Case:
  """`tokens` states of width `width` against a vocabulary."""

  name: str
  tokens: int
  width: int
  vocab: int
  hidden: str = "bfloat16"
  head: str = "bfloat16"
  temperature: float = 1.0

  def small(self) -> "Case":
    """Two or three blocks of 128 either way, with a part of a block where the real shape has one
    against blocks of 512."""
    return dataclasses.replace(
      self,
      tokens=256 if self.tokens % 512 == 0 else 211,
      width=self.width // 32,
      vocab=256 if self.vocab % 512 == 0 else 256 + self.vocab % 512 // 8 * 2,
    )

  def shapes(self) -> Shapes:
    return Shapes(
      jax.ShapeDtypeStruct((self.tokens, self.width), jnp.dtype(self.hidden)),
      jax.ShapeDtypeStruct((self.vocab, self.width), jnp.dtype(self.head)),
      jax.ShapeDtypeStruct((self.tokens,), jnp.int32),
    )


CASES = (
  Case("smollm2-135m", 4096, 576, 49152, "float32", "float32"),
  Case("qwen3-0.6b", 16384, 1024, 151936, head="float32", temperature=0.7),
  Case("qwen2.5-7b", 8192, 3584, 152064),
  Case("llama-3.1-8b", 8000, 4096, 128256, temperature=1.3),
)
