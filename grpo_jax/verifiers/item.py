"""What a reward function sees of a problem, inside a reward process."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Item:
  """Same names as the data set's problems; a plain copy, so any such object can be scored."""

  id: int
  prompt: str
  question: str
  answer: str | None
  meta: dict = field(default_factory=dict)


def as_row(problem) -> tuple:
  return (problem.id, problem.prompt, problem.question, problem.answer, problem.meta)


def first_line(text: str) -> str:
  """The first line that is not blank, without surrounding spaces."""
  for line in text.splitlines():
    if line.strip():
      return line.strip()
  return ""


def tagged(text: str) -> str | None:
  """What the last complete <answer>...</answer> holds; linear in the text, whatever it repeats."""
  end = text.rfind("</answer>")
  start = text.rfind("<answer>", 0, max(end, 0))
  return None if start < 0 else text[start + len("<answer>") : end].strip()
