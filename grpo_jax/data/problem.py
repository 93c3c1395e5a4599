"""The record that data hands to sampling and scoring, and the split that keeps them honest."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from grpo_jax.errors import UserError


@dataclass(frozen=True)
class Problem:
  """One prompt.

  `id` is stable: training problems have 0 .. Q-1, held-out ones follow. `prompt` is the text that
  the tokenizer gets; `question` is what the split is decided by. `meta` holds

    source      label of the component, for accuracy per difficulty
    share       its share of a batch, relative to the other labels
    task, entry reasoning-gym task (name and params) and entry, read by its scorer
    completion, chosen, rejected   texts of demonstrations and preference pairs
  """

  id: int
  prompt: str
  question: str
  answer: str | None
  meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
  """`scorer_spec`: reward parts that fit the source. `stop`: text that ends an answer, or None.

  `tasks`: reasoning-gym tasks for the reward processes to load early. `shots`: the solved examples
  of the prompt, which are in neither split. `dropped`: rows left out of the training set because
  their question, or the prompt made of it, is held out. `order`: what shuffles, see
  `stream.PromptStream`.
  """

  train: list[Problem]
  heldout: list[Problem]
  scorer_spec: list[dict]
  stop: str | None = None
  tasks: tuple[dict, ...] = ()
  shots: tuple[Problem, ...] = ()
  dropped: int = 0
  order: str = "numpy"


def text_hash(text: str, salt: str = "") -> int:
  """64 bits of the text alone: the same on every machine and in every run."""
  return int.from_bytes(hashlib.sha256(f"{salt}\0{text}".encode()).digest()[:8], "big")


def numbered(problems: Iterable[Problem], start: int = 0) -> list[Problem]:
  return [replace(p, id=start + i) for i, p in enumerate(problems)]


def split(problems: list[Problem], heldout: int) -> tuple[list[Problem], list[Problem]]:
  """(train, heldout): `heldout` distinct questions by the hash of their text, one row each."""
  first: dict[str, Problem] = {}
  for p in problems:
    first.setdefault(p.question, p)
  if heldout >= len(first):
    raise UserError(
      f"data.heldout: {heldout} of {len(first)} distinct questions leave none to train on; lower it"
    )
  held = sorted(first, key=lambda q: text_hash(q, "heldout"))[:heldout]
  apart = set(held)
  return [p for p in problems if p.question not in apart], [first[q] for q in held]
