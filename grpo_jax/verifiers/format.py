"""1 if the completion has the asked form, else 0; says nothing of the answer."""

import re

from grpo_jax.errors import UserError
from grpo_jax.verifiers.item import Item

THINK_ANSWER = r"\s*<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)*</answer>\s*"


def make(pattern: str = THINK_ANSWER):
  """`pattern` must match the whole completion; "." also matches a line break."""
  try:
    compiled = re.compile(pattern, re.DOTALL)
  except re.error as e:
    raise UserError(f"reward.parts.args.pattern: not a regular expression: {e}") from e

  def score(completion: str, item: Item, tokens: int | None) -> float | None:
    del item, tokens
    return float(compiled.fullmatch(completion) is not None)

  return score
