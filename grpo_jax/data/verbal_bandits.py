"""Bandits in words: what a language model reads before it names an arm.

"EVOLvE: Evaluating and Optimizing LLMs For Exploration" (arXiv:2410.06238, BanditBench). A prompt
is a head, the same at every step (the scenario, what a line means, examples), and a body that ends
where the name of an arm is due. Bodies, for pulls (a_1, r_1), ..., (a_t, r_t):

  raw      RH  every pull in order
  summary  SH  an arm a line: pulls n_a, mean R_a / (n_a + 1e-6) to 2 decimals
  guided   AG  SH, and the two terms of UCB: R_a / n_a and sqrt(alpha log(sum_b n_b) / n_a), where
               alpha = 0.5 stands inside the root as in the released code (the paper's text has it
               outside); an arm never pulled has value 0 and bonus inf

The scenarios are the paper's; all wording is our own. Names are words that SmolLM2's tokenizer has
as one token after a space.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.lookup import unknown

Pull = tuple[int, float]  # arm, reward
STYLES = ("raw", "summary", "guided")
ALPHA = 0.5


@dataclasses.dataclass(frozen=True)
class Scenario:
  """`verb` stands before a name, at the start of a line; `names` of at most ten arms."""

  story: str
  verb: str
  names: tuple[str, ...]

  def arms(self, count: int) -> "Scenario":
    """With its first `count` names; UserError for more than there are, and for none."""
    if not 1 <= count <= len(self.names):
      raise UserError(f"data.arms={count}: a verbal scenario has 1 to {len(self.names)} arms")
    return dataclasses.replace(self, names=self.names[:count])


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


SCENARIOS = {
  "buttons": Scenario(
    "A machine has these buttons: {names}. A press pays 1 or 0. One of the buttons pays more often "
    "than the others.",
    "press",
    _words("red blue green yellow purple orange black white pink silver"),
  ),
  "videos": Scenario(
    "These clips can be shown to a visitor: {names}. A visitor likes a clip, 1, or does not, 0. "
    "One of the clips is liked more often than the others.",
    "show",
    _words("Q V X Z J K H W M P"),
  ),
  "clothes": Scenario(
    "A shop can recommend one of these: {names}. A customer buys it, 1, or does not, 0. One of "
    "them is bought more often than the others.",
    "recommend",
    _words("shirt jacket jeans dress boots gloves hat coat socks belt"),
  ),
  "ads": Scenario(
    "A page has room for one advertisement, on one of: {names}. A reader clicks on it, 1, or does "
    "not, 0. One of them is clicked more often than the others.",
    "place",
    _words("coffee bikes shoes phones books music travel games wine cars"),
  ),
}
_READ = {
  "raw": "Every line is one choice and what it gave.",
  "summary": "Every line is one option: how often it was chosen, and its mean so far.",
  "guided": "Every line is one option: how often it was chosen, its mean so far, its value, and a "
  "bonus for what is little known. The option with the greatest sum of value and bonus is best.",
}


def scenario(name: str, arms: int) -> Scenario:
  """UserError for an unknown name."""
  if name not in SCENARIOS:
    raise unknown("data.scenario", name, SCENARIOS)
  return SCENARIOS[name].arms(arms)


def tally(arms: int, pulls: Sequence[Pull]) -> tuple[np.ndarray, np.ndarray]:
  """(count, total) f64[A] of the pulls."""
  count, total = np.zeros(arms), np.zeros(arms)
  for arm, reward in pulls:
    count[arm] += 1
    total[arm] += reward
  return count, total


def guide(count, total, alpha: float = ALPHA) -> tuple[np.ndarray, np.ndarray]:
  """(value, bonus) f64[A] as above: 0 and inf for an arm never pulled."""
  count, total = np.asarray(count, float), np.asarray(total, float)
  n = np.maximum(count, 1)
  bonus = np.sqrt(alpha * np.log(max(count.sum(), 1)) / n)
  return np.where(count > 0, total / n, 0.0), np.where(count > 0, bonus, np.inf)


def head(scene: Scenario, style: str, examples: str = "") -> str:
  """The constant beginning of every prompt of a game; `examples` from `few_shot`."""
  if style not in STYLES:
    raise unknown("history", style, STYLES)
  *first, last = scene.names
  names = f"{', '.join(first)} and {last}" if first else last
  told = f"{scene.story.format(names=names)} The aim is the greatest total. {_READ[style]}\n\n"
  return f"{told}{examples}A new game:\n\n" if examples else told


def body(scene: Scenario, style: str, pulls: Sequence[Pull]) -> str:
  """The history, then the verb; the name follows after a space."""
  if style == "raw":
    lines = [line(scene, arm, reward) for arm, reward in pulls]
    return "".join(lines) + scene.verb
  return summary(scene, *tally(len(scene.names), pulls), guided=style == "guided") + scene.verb


def line(scene: Scenario, arm: int, reward: float) -> str:
  """One pull of the raw history."""
  return f"{scene.verb} {scene.names[arm]}: {reward:g}\n"


def summary(scene: Scenario, count, total, guided: bool = False) -> str:
  """A line an arm, in the order of the names: a function of the tallies alone."""
  value, bonus = guide(count, total)
  lines = []
  for a, name in enumerate(scene.names):
    text = f"{name}: chosen {count[a]:.0f}, mean {total[a] / (count[a] + 1e-6):.2f}"
    lines.append(f"{text}, value {value[a]:.2f}, bonus {bonus[a]:.2f}\n" if guided else f"{text}\n")
  return "".join(lines)


def few_shot(
  scene: Scenario,
  style: str,
  pulls: Sequence[Pull],
  *,
  skip: int = 2,
  every: int = 2,
  count: int = 5,
) -> str:
  """`count` examples from one trajectory of an oracle: its history and its choice before pulls
  skip, skip + every, ... (counted from 0). UserError if the trajectory is too short."""
  steps = range(skip, skip + every * count, every)
  if count and steps[-1] >= len(pulls):
    raise UserError(
      f"few_shot: {count} examples need {steps[-1] + 1} pulls, there are {len(pulls)}"
    )
  shown = [body(scene, style, pulls[:t]) + f" {scene.names[pulls[t][0]]}\n\n" for t in steps]
  return "".join(f"A game:\n\n{text}" for text in shown)
