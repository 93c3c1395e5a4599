"""From a question to the text that the tokenizer gets.

`few_shot` is raw text for base models: solved examples, then the question. The examples are drawn
once and taken out of both splits, so every prompt starts with the same text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from grpo_jax.data.problem import Problem, text_hash
from grpo_jax.errors import UserError
from grpo_jax.names import check_keys, unknown

STYLES = ("plain", "few_shot", "chat")
Render = Callable[[list[dict]], str]


@dataclass(frozen=True)
class PromptSpec:
  """`question_regex`: what is kept of a question (group 1 if it has one, else the whole match).

  `template` writes one solved example from {question} and {answer}; the prompt is cut off where
  {answer} would start, without the spaces before it. `stop` ends an answer; None: the text that
  follows {answer} in the template (few_shot only).
  """

  style: str = "plain"
  shots: int = 0
  template: str = "{question} {answer}\n"
  question_regex: str | None = None
  system: str | None = None
  instruction: str | None = None
  stop: str | None = None

  @staticmethod
  def of(config: dict | None) -> "PromptSpec":
    config = dict(config or {})
    check_keys("data.prompt", config, PromptSpec.__dataclass_fields__)
    if config.get("style", "plain") not in STYLES:
      raise unknown("data.prompt.style", config["style"], STYLES)
    if config.get("style") == "few_shot":
      config = {"shots": 8} | config
    spec = PromptSpec(**config)
    for name in ("{question}", "{answer}"):
      if spec.style == "few_shot" and spec.template.count(name) != 1:
        raise UserError(f"data.prompt.template: must contain {name} exactly once")
    if spec.style == "plain" and spec.shots:
      raise UserError("data.prompt.shots: style 'plain' has no examples; use 'few_shot' or 'chat'")
    if spec.question_regex is not None:
      try:
        re.compile(spec.question_regex)
      except re.error as e:
        raise UserError(f"data.prompt.question_regex: not a regular expression: {e}") from e
    return spec

  @property
  def stop_text(self) -> str | None:
    if self.stop is None and self.style == "few_shot":
      return self.template.partition("{answer}")[2] or None
    return self.stop


def draw_shots(train: list[Problem], k: int, seed: int) -> tuple[list[Problem], list[Problem]]:
  """(examples, the other training problems); labels take turns, so each difficulty is shown."""
  by_label: dict[str, list[Problem]] = {}
  for p in sorted(train, key=lambda p: text_hash(p.question, f"shots {seed}")):
    if p.answer is not None:
      by_label.setdefault(str(p.meta.get("source")), []).append(p)
  shots: list[Problem] = []
  while len(shots) < k and any(by_label.values()):
    for label in sorted(by_label):
      if by_label[label] and len(shots) < k:
        shots.append(by_label[label].pop(0))
  if len(shots) < k or (k and len(train) <= k):
    raise UserError(
      f"data.prompt.shots: {k} examples need more than {k} training problems with an answer; "
      f"there are {len(train)}"
    )
  chosen = {p.question for p in shots}
  return shots, [p for p in train if p.question not in chosen]


def kept(spec: PromptSpec, question: str) -> str:
  """What of a question the prompt shows, the same for all that tells prompts apart."""
  if spec.question_regex is None:
    return question
  match = re.search(spec.question_regex, question, re.DOTALL)
  if match is None:
    raise UserError(f"data.prompt.question_regex: does not match the question {question[:80]!r}")
  return match.group(1 if match.re.groups else 0)


def build(
  spec: PromptSpec, problems: list[Problem], shots: list[Problem], render: Render | None = None
) -> list[Problem]:
  """The problems with `prompt` filled in. `chat` needs `render(messages) -> str`."""
  head = "" if spec.instruction is None else spec.instruction
  if spec.style == "plain":
    return [replace(p, prompt=head + kept(spec, p.question)) for p in problems]
  if spec.style == "few_shot":
    for s in shots:
      head += _fill(spec.template, kept(spec, s.question), s.answer or "")
    ask = spec.template.partition("{answer}")[0].rstrip()
    return [replace(p, prompt=head + _fill(ask, kept(spec, p.question))) for p in problems]
  if render is None:
    raise UserError("data.prompt.style: 'chat' needs a tokenizer with a chat template")
  past = [] if spec.system is None else [{"role": "system", "content": spec.system}]
  for s in shots:
    past.append({"role": "user", "content": head + kept(spec, s.question)})
    past.append({"role": "assistant", "content": s.answer or ""})
  return [
    replace(p, prompt=render([*past, {"role": "user", "content": head + kept(spec, p.question)}]))
    for p in problems
  ]


def _fill(template: str, question: str, answer: str = "") -> str:
  """Not str.format: braces elsewhere in the template or in a question are plain text."""
  before, _, after = template.partition("{question}")
  return before.replace("{answer}", answer) + question + after.replace("{answer}", answer)
