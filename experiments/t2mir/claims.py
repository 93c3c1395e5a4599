"""What "Mixture-of-Experts Meets In-Context Reinforcement Learning" says, as statements.

They follow the paper and were written before any arm had been trained to its end. Arms are
compared seed by seed: a seed has the same start of all that they share, and the same batches.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.first_protocol import Statement, more

CLAIM = (
  "In an in-context learner of Point-Robot, token-wise and task-wise experts side by side give a "
  "higher few-shot return on held-out goals than a dense layer of as many active parameters, than "
  "either kind of experts alone, and than both without the contrastive loss; the token gate "
  "separates states, actions and rewards, and the task gate groups contexts by their task, the "
  "more so for the contrastive loss."
)
NOTES = (
  "Small setting: T2MIR-DPT with a width of 32, one layer of experts of three, contexts of 20 "
  "transitions with the optimal action as the label, 180 training and 20 held-out goals. Contexts "
  "are windows of learning histories of soft actor-critic, one learner a goal, 50 episodes of "
  "which the first 10 are uniform actions. All arms have as many active parameters in the layer "
  "of the experts (biases and gates apart): alone, a kind of experts has the full width and "
  "experts 1.5 times as large, so its total differs; see `sizes`. A score is the return of six "
  "episodes that follow each other from the context of one episode of uniform actions, mean over "
  "episodes and held-out goals: 0 is that of standing still in the middle, 1 the optimum. What "
  "was tried before, and seen: on Darkroom one run of `full` (7x7, 2000 steps) did not get past "
  "what needs no context with independent transitions, and with histories of Q-learning learned "
  "the training goals without serving held-out ones, so the task was changed to another of the "
  "paper's, whose every reward tells of the goal. There all five arms, with contexts of "
  "independent transitions and from an empty context, had learned nothing of it after 1000 steps "
  "(best mean score 0.05): their own episodes were unlike anything they had been trained on. So "
  "the contexts became histories, as in the paper, and the episodes begin after one of uniform "
  "actions; learners and this beginning were chosen on one run of `full` with one seed and 2000 "
  "steps (score 0.23; from an empty context, with 2 uniform episodes of 100 in the histories, "
  "below 0, the AD variant after as many steps 0.06). The statements are those written before any "
  "of this. The released configs train 25 times as long, on 45 goals."
)
LEARNED = 0.2  # of the score, of 0 to 1: what the best arm must reach
MARGIN = 0.02  # of the score, or of the contexts: less would not matter
OTHERS = {
  "dense": "one dense layer of as many active parameters",
  "token": "token-wise experts alone",
  "task": "task-wise experts alone",
  "no_contrast": "both without the contrastive loss",
}
ARMS = ("full", *OTHERS)


class Run(NamedTuple):
  """What a finished arm left."""

  scores: np.ndarray  # [S, E] by episode, mean over held-out goals
  steps: list[int]  # of the exams
  learning: np.ndarray  # [S, exams]: mean over episodes
  given: np.ndarray  # [S]: score of an episode with a context of independent transitions
  routing: dict  # routing.measure

  def after(self, name: str, stage: str = "after") -> np.ndarray:
    """[S] of one of the marks of routing."""
    return np.asarray([seed[name] for seed in self.routing[stage]])


def read(workdir: Path, routing: dict) -> Run:
  exams = [json.loads(p.read_text()) for p in sorted((workdir / "exam").glob("step_*.json"))]
  best, still = json.loads((workdir / "oracles.json").read_text())["best"], routing["still"]
  score = lambda e, name: (np.asarray(e["curves"][name]) - still) / (best - still)
  scores = [score(e, "return") for e in exams]
  learning = np.stack([s.mean(axis=1) for s in scores], axis=1)
  steps = [e["step"] for e in exams]
  return Run(scores[-1], steps, learning, score(exams[-1], "offline"), routing)


def weak(runs: dict[str, Run]) -> str | None:
  """Why these runs cannot tell arms apart, if they cannot. A rule made after a first run of 1000
  steps, in which no arm got further."""
  best = max(float(run.learning[:, -1].mean()) for run in runs.values())
  if best >= LEARNED:
    return None
  return f"no arm has learned from its context: the best mean score is {best:.2f}, below {LEARNED}"


def statements(runs: dict[str, Run]) -> list[Statement]:
  """Those whose arms are here; all but the token gate's compare `full` with another arm."""
  if "full" not in runs:
    return []
  full = runs["full"]
  said = [
    more(f"score: both kinds > {text}", full.learning[:, -1], runs[arm].learning[:, -1], MARGIN)
    for arm, text in OTHERS.items()
    if arm in runs
  ]
  said += [
    more("token gate: purity of its experts by modality > 0.8", full.after("token_purity"), 0.8),
    more(
      "token gate: information on the modality, in nats > before training",
      full.after("token_modality"),
      full.after("token_modality", "before"),
    ),
    more(
      "task gate: nearest centroid of q, of 20, is the own task's > 25%",
      full.after("q_nearest"),
      0.25,
    ),
  ]
  if "no_contrast" in runs:
    plain = runs["no_contrast"]
    said += [
      more(
        "task gate: nearest centroid of q, with > without the contrastive loss",
        full.after("q_nearest"),
        plain.after("q_nearest"),
        MARGIN,
      ),
      more(
        "task gate: I(task; argmax q) in nats, with > without the contrastive loss",
        full.after("q_task"),
        plain.after("q_task"),
      ),
    ]
  return said
