"""A list, line by line: 1 for a line that is among the answer's lines and did not stand before."""

from grpo_jax.verifiers.item import Item


def make(casefold: bool = True):
  """For parts with `units`: the k-th number judges the k-th line, blank lines included, as the
  tokens of a line are a unit. None without an answer."""

  def clean(line: str) -> str:
    return line.strip().casefold() if casefold else line.strip()

  def score(completion: str, item: Item, tokens: int | None) -> list[float] | None:
    del tokens
    if item.answer is None:
      return None
    left = {clean(line) for line in item.answer.splitlines() if line.strip()}
    worth = []
    for line in completion.split("\n"):
      found = clean(line) in left
      left.discard(clean(line))
      worth.append(float(found))
    return worth

  return score
