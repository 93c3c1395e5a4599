"""What EVOLvE says, as statements on the regrets of single games, all on the same tasks and luck.

Written before any model had played. By kind: "" of arms, "contextual" of users. The paper's models
have a thousand times our parameters; that the untrained ones of its table gain from a summary,
guidance and examples is tested for ours as is.
"""

import numpy as np

from experiments.common.first_protocol import Statement, more, not_less
from grpo_jax.systems.evolve_bandits.games import Games

CLAIM = {
  "": "Summaries, an algorithm's guidance and examples each lower the regret of an untrained "
  "language model on bandits; imitation of UCB's games brings it near UCB's own; reinforcement of "
  "the regret lowers it further.",
  "contextual": "Summaries, an algorithm's guidance and examples each lower the regret of an "
  "untrained language model on contextual bandits too, and LinUCB's own is lower still.",
}
_ARMS = (
  "SmolLM2-135M-Instruct, plain text prompts, arms scored by the log-probability of their names "
  "and sampled; one configuration (Bernoulli, gap 0.5, 5 arms), a horizon of 30 in place of 300, "
  "rewards of the same luck for all players. Trained on raw histories, which the paper found best "
  "for imitation. Regret is of expected rewards. That GRPO lowers it further is our own "
  "question, not the paper's claim. 16 steps of imitation on 12 games and 3 of GRPO on 16, one "
  "training seed: as much as the time of a small machine allowed, settled before any had run."
)
_USERS = (
  "SmolLM2-135M-Instruct as for arms: plain text prompts, films scored by the log-probability of "
  "their names and sampled. The ratings are SYNTHETIC, of a generator of our own (400 users, 10 "
  "films, data/movielens.py), not MovieLens 1M, which is read by the same code but is not at hand. "
  "8 games of the 200 users held out, the examples of the 200 others, 20 steps in place of 200: as "
  "much as the time of a small machine allowed. Rank 10 of 10 films is the whole matrix, its "
  "missing ratings of 0 included. Three of ten numbers of a user are written. Summaries of "
  "contextual bandits, and guidance beside them, are texts of our own; the released code's "
  "repeat users, and guidance, of every step. The features are rows of an "
  "orthonormal U, so |x| is about 0.16 and ridge regression with A = I hardly moves: LinUCB's "
  "bonus is nearly constant and LinUCB nearly greedy. Synthetic ratings, texts and settings were "
  "fixed after a look at the oracles and one debug run of 4 steps on 3 films. Noted after the run: "
  "the films of the examples are those that are played, for other users, so the examples also say "
  "which films are liked, which those of arms, drawn anew, do not. Within 20 steps one of "
  "ten films mostly stays untried: MinFrac says little here."
)
NOTES = {"": _ARMS, "contextual": _USERS}
FACTOR = 1.5


def statements(games: dict[str, Games]) -> list[Statement]:
  """Those whose conditions were played."""
  r = {name: g.lost.sum(axis=1) for name, g in games.items()}
  said = (
    ("base_rh", "base_sh", lambda x, y: more("raw history's regret > summary's", x, y)),
    ("base_rh", "guided_ag", lambda x, y: more("raw history's regret > guided's", x, y)),
    ("base_sh", "few_shot_sh", lambda x, y: more("summary's regret > that with examples", x, y)),
    ("guided_ag", "linucb", lambda x, y: more("guided's regret > LinUCB's", x, y)),
    ("base_rh", "oft", lambda x, y: more("raw history's regret > that after imitation", x, y)),
    ("ucb", "oft", lambda x, y: not_less("1.5 x UCB's regret >= imitation's", FACTOR * x, y, 0)),
    ("oft", "oft_grpo", lambda x, y: more("imitation's regret > that after GRPO", x, y)),
  )
  return [make(r[a], r[b]) for a, b, make in said if a in r and b in r]


def horizon(games: dict[str, Games]) -> int:
  return np.asarray(next(iter(games.values())).lost).shape[1]
