"""A list, entry by entry: 1 for an entry that is right, for parts with `units`."""

from grpo_jax.verifiers.item import Item


def make(separator: str = "\n", ordered: bool = False, casefold: bool = True):
  """The k-th number judges the k-th entry between separators, whose tokens are the k-th unit where
  sample.cut is the separator. None without an answer.

  An entry is right if it is among the answer's and did not stand before; ordered: if it is the
  answer's entry of that place.
  """

  def clean(entry: str) -> str:
    return entry.strip().casefold() if casefold else entry.strip()

  def score(completion: str, item: Item, tokens: int | None) -> list[float] | None:
    del tokens
    if item.answer is None:
      return None
    wanted = [clean(x) for x in item.answer.split(separator) if x.strip()]
    given = [clean(x) for x in completion.split(separator)]
    if ordered:
      return [float(k < len(wanted) and x == wanted[k]) for k, x in enumerate(given)]
    worth = []
    for entry in given:
      worth.append(float(entry in wanted))
      if entry in wanted:
        wanted.remove(entry)
    return worth

  return score
