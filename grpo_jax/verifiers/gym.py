"""The own scorer of a reasoning-gym task. Some of them eval() the answer: run them in the pool."""

import json

from grpo_jax.names import one_of
from grpo_jax.reasoning_gym import gym_dataset
from grpo_jax.verifiers.item import Item, first_line, tagged

EXTRACT = ("auto", "tag", "first_line", "all")


def extract_answer(completion: str, mode: str) -> str | None:
  """auto: what the last <answer> tag holds, or all of the text where there is none."""
  if mode == "first_line":
    return first_line(completion)
  if mode != "all":
    found = tagged(completion)
    if found is not None or mode == "tag":
      return found
  return completion.strip()


def make(extract: str = "auto", binary: bool = False):
  """Score in [0, 1] as the task gives it; `binary`: 1 for a full score, else 0.

  Many tasks give partial credit, e.g. len(answer) / len(text) where the text contains the answer.
  Needs item.meta["task"] (name and params) and item.meta["entry"]; without them, None.
  """
  one_of("reward.parts.args.extract", extract, EXTRACT)
  loaded = {}

  def dataset(task: dict):
    key = task["name"] + json.dumps(task["params"], sort_keys=True, default=str)
    if key not in loaded:
      loaded[key] = gym_dataset(task["name"], dict(task["params"]))
    return loaded[key]

  def prepare(meta: dict) -> bool:
    before = len(loaded)
    if "task" in meta:
      dataset(meta["task"])
    return len(loaded) > before

  def score(completion: str, item: Item, tokens: int | None) -> float | None:
    del tokens
    if "task" not in item.meta or "entry" not in item.meta:
      return None
    answer = extract_answer(completion, extract)
    value = float(dataset(item.meta["task"]).score_answer(answer, item.meta["entry"]))
    return float(value >= 1.0) if binary else value

  score.prepare = prepare
  return score
