"""Soft overlong punishment of ByteDance's DAPO (arXiv:2503.14476, equation 13).

0                                     L <= max_tokens - soft_tokens
(max_tokens - soft_tokens - L) / soft_tokens     in between
-1                                    L > max_tokens
"""

from grpo_jax.errors import UserError
from grpo_jax.verifiers.item import Item


def make(max_tokens: int, soft_tokens: int):
  """L is counted in tokens; without token counts the part does not apply."""
  if not 0 < soft_tokens <= max_tokens:
    raise UserError(
      f"reward.parts.args.soft_tokens: must be in 1 .. max_tokens = {max_tokens}, got {soft_tokens}"
    )
  free = max_tokens - soft_tokens

  def score(completion: str, item: Item, tokens: int | None) -> float | None:
    del completion, item
    if tokens is None:
      return None
    return min(0.0, max(-1.0, (free - tokens) / soft_tokens))

  return score
