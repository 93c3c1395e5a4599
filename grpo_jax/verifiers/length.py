"""Soft overlong punishment of ByteDance's DAPO (arXiv:2503.14476, equation 13).

0                                     L <= max_tokens - soft_tokens
(max_tokens - soft_tokens - L) / soft_tokens     in between
-1                                    L > max_tokens
"""

from grpo_jax.names import between
from grpo_jax.verifiers.item import Item


def make(max_tokens: int, soft_tokens: int):
  """L is counted in tokens; without token counts the part does not apply."""
  between("reward.parts.args.soft_tokens", soft_tokens, high=max_tokens, above=0)
  free = max_tokens - soft_tokens

  def score(completion: str, item: Item, tokens: int | None) -> float | None:
    del completion, item
    if tokens is None:
      return None
    return min(0.0, max(-1.0, (free - tokens) / soft_tokens))

  return score
