"""1 if the completion says exactly the answer, else 0."""

from grpo_jax.verifiers.item import Item, first_line


def make(first_line_only: bool = True, casefold: bool = False):
  """Compares the first non-blank line (or all) with the answer, surrounding spaces apart."""

  def clean(text: str) -> str:
    text = first_line(text) if first_line_only else text.strip()
    return text.casefold() if casefold else text

  def score(completion: str, item: Item, tokens: int | None) -> float | None:
    del tokens
    if item.answer is None:
      return None
    return float(clean(completion) == clean(item.answer))

  return score
