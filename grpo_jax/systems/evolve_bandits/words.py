"""Bandits in words: what a language model reads before it names an arm.

"EVOLvE: Evaluating and Optimizing LLMs For Exploration" (arXiv:2410.06238, BanditBench). A prompt
is a head, the same at every step (the scenario, what a line means, examples), and a body that ends
where the name of an arm is due. Bodies, for pulls (a_1, r_1), ..., (a_t, r_t):

  raw      RH  every pull in order
  summary  SH  an arm a line: pulls n_a, mean R_a / (n_a + 1e-6) to 2 decimals
  guided   AG  SH, and the two terms of UCB: R_a / n_a and sqrt(alpha log(sum_b n_b) / n_a), where
               alpha = 0.5 stands inside the root as in the released code (the paper's text has it
               outside); an arm never pulled has value 0 and bonus inf

Where users come (contextual bandits), a line on the user stands before each verb, and the terms of
AG are those of disjoint LinUCB for the user of now: theta_a . x and alpha sqrt(x A_a^-1 x). SH, the
tallies of all users together, is there our own: the released code has none for contexts, and its
AG repeats the terms of every step.

The scenarios are the paper's; all wording is our own. Names are words that SmolLM2's tokenizer has
as one token after a space, the titles of MovieLens as they are.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.names import one_of

Pull = tuple[int, float]  # arm, reward
STYLES = ("raw", "summary", "guided")
ALPHA = 0.5


@dataclasses.dataclass(frozen=True)
class Scenario:
  """`verb` stands before a name, at the start of a line; `users`: a line on each who may come, none
  where nobody is told apart; `contexts` f[U, d]: the numbers x that LinUCB has of them."""

  story: str
  verb: str
  names: tuple[str, ...]
  users: tuple[str, ...] = ()
  contexts: Any = dataclasses.field(default=None, compare=False)

  def arms(self, count: int) -> "Scenario":
    """With its first `count` names; UserError for more than there are, and for none."""
    if not 1 <= count <= len(self.names):
      raise UserError(f"data.arms={count}: a verbal scenario has 1 to {len(self.names)} arms")
    return dataclasses.replace(self, names=self.names[:count])

  def ask(self, user: int = 0) -> str:
    """After which the name of an arm is due."""
    return f"{self.users[user]}\n{self.verb}" if self.users else self.verb


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
MOVIES = Scenario(
  "Visitors come to a film site one by one; a line tells of each, with numbers for taste. These "
  "films can be recommended: {names}. A visitor rates the film from 1 to 5, or does not, 0.",
  "recommend",
  (),
)
_READ = {
  "raw": "Every line is one choice and what it gave.",
  "summary": "Every line is one option: how often it was chosen, and its mean so far.",
  "guided": "Every line is one option: how often it was chosen, its mean so far, its value, and a "
  "bonus for what is little known. The option with the greatest sum of value and bonus is best.",
}


def scenario(name: str, arms: int) -> Scenario:
  """UserError for an unknown name."""
  one_of("data.scenario", name, SCENARIOS)
  return SCENARIOS[name].arms(arms)


def tally_text(arms: int, pulls: Sequence[Pull]) -> tuple[np.ndarray, np.ndarray]:
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


def linear_guide(
  scene: Scenario, pulls: Sequence[Pull], seen: Sequence[int], alpha: float = ALPHA
) -> tuple[np.ndarray, np.ndarray]:
  """(value, bonus) f64[A] of LinUCB for the user of now, as above: A_a = I + sum x x^T and theta_a
  = A_a^-1 sum r x over the pulls of a. Without pulls 0 and alpha |x|."""
  contexts = np.asarray(scene.contexts, float)
  x, dim, arms = contexts[seen[-1]], contexts.shape[1], len(scene.names)
  gram, moment = np.tile(np.eye(dim), (arms, 1, 1)), np.zeros((arms, dim))
  for (arm, reward), user in zip(pulls, seen, strict=False):
    gram[arm] += np.outer(contexts[user], contexts[user])
    moment[arm] += reward * contexts[user]
  solved = np.linalg.solve(gram, np.tile(x[:, None], (arms, 1, 1)))[..., 0]
  return np.sum(moment * solved, axis=1), alpha * np.sqrt(solved @ x)


def head(scene: Scenario, style: str, examples: str = "") -> str:
  """The constant beginning of every prompt of a game; `examples` from `few_shot`."""
  one_of("history", style, STYLES)
  *first, last = scene.names
  names = f"{', '.join(first)} and {last}" if first else last
  told = f"{scene.story.format(names=names)} The aim is the greatest total. {_READ[style]}\n\n"
  return f"{told}{examples}A new game:\n\n" if examples else told


def body(scene: Scenario, style: str, pulls: Sequence[Pull], seen: Sequence[int] = ()) -> str:
  """The history, then the verb; the name follows after a space. `seen`: the user of each pull and
  of now, one more than pulls; not read where there are none."""
  seen = list(seen) or [0] * (len(pulls) + 1)
  ask = scene.ask(seen[-1])
  if style == "raw":
    told = zip(pulls, seen, strict=False)
    return "".join(line(scene, arm, reward, user) for (arm, reward), user in told) + ask
  count, total = tally_text(len(scene.names), pulls)
  if style != "guided":
    return summary(scene, count, total) + ask
  terms = linear_guide(scene, pulls, seen) if scene.users else guide(count, total)
  return summary(scene, count, total, terms) + ask


def line(scene: Scenario, arm: int, reward: float, user: int = 0) -> str:
  """One pull of the raw history; a reward to 2 decimals at most."""
  return f"{scene.ask(user)} {scene.names[arm]}: {round(float(reward), 2) + 0.0:g}\n"


def summary(scene: Scenario, count, total, terms=None) -> str:
  """A line an arm, in the order of the names; `terms`: (value, bonus) of guidance. Those of LinUCB
  are small, |x| is, and have 3 decimals."""
  digits = 3 if scene.users else 2
  shown = lambda x, digits=2: f"{round(float(x), digits) + 0.0:.{digits}f}"
  lines = []
  for a, name in enumerate(scene.names):
    text = f"{name}: chosen {count[a]:.0f}, mean {shown(total[a] / (count[a] + 1e-6))}"
    if terms is not None:
      value, bonus = (shown(term[a], digits) for term in terms)
      text += f", value {value}, bonus {bonus}"
    lines.append(f"{text}\n")
  return "".join(lines)


def few_shot(
  scene: Scenario,
  style: str,
  pulls: Sequence[Pull],
  seen: Sequence[int] = (),
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
  shown = [
    body(scene, style, pulls[:t], seen[: t + 1]) + f" {scene.names[pulls[t][0]]}\n\n" for t in steps
  ]
  return "".join(f"A game:\n\n{text}" for text in shown)
