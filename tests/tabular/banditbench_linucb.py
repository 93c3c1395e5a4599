"""Writes banditbench_linucb.json: LinUCB of the package banditbench (0.0.8) on ratings of ours.

  python tests/tabular/banditbench_linucb.py ratings.npy

in an environment with banditbench, numpy and scipy only: what else the package imports is replaced
by empty modules (TensorFlow, LiteLLM, pandas, ...), and its MovieLens environment gets the matrix
of `data.movielens.synthetic(10).table`, saved as ratings.npy, where it would read MovieLens 1M.
Once as it is, and once with all features times 20 (Sigma divided by that: the rewards stay), where
its wide ties, of all scores within 0.001, tell no more.
"""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

OUT = Path(__file__).with_suffix(".json")
GAMES, STEPS, RANK, KEPT, SCALES = 200, 200, 20, 4, (1, 20)
MISSING = (
  "absl", "litellm", "litellm.cost_calculator", "litellm.utils", "matplotlib", "matplotlib.pyplot",
  "ml_dtypes", "pandas", "requests", "tensorflow", "tensorflow_datasets", "tqdm",
)  # fmt: skip


def main(path: str) -> None:
  for name in MISSING:
    sys.modules[name] = MagicMock()
  from banditbench.agents.classics import LinUCBAgent  # pyright: ignore[reportMissingImports]
  from banditbench.tasks.cb.movielens import MovieLens  # pyright: ignore[reportMissingImports]

  table = np.load(path)

  class Given(MovieLens):
    scale = 1

    def initialize_defaults(self):
      u, s, v = np.linalg.svd(table, full_matrices=False)
      self._num_users, self._num_movies = table.shape
      self.n_actions = self._num_movies
      self._u_hat = (u[:, :RANK] * self.scale).astype(np.float32)
      self._s_hat = (s[:RANK] / self.scale).astype(np.float32)
      self._v_hat = v[:RANK].T.astype(np.float32)
      self._approx_ratings_matrix = (self._u_hat * self._s_hat) @ self._v_hat.T
      self._user_idx_to_feats, self._movie_idx_to_feats = [None] * len(table), {}

  out: dict = {"steps": STEPS}
  for scale in SCALES:
    Given.scale = scale
    rewards, kept = [], []
    np.random.seed(0)  # of the agent's ties
    for seed in range(GAMES):
      env = Given("1m-ratings", table.shape[1], STEPS, rank_k=RANK, mode="train", seed=seed)
      total, played = game(env, LinUCBAgent(env))
      rewards.append(round(total, 3))
      if seed < KEPT:
        kept.append(played)
    out[f"scale {scale}"] = {"total": rewards, "played": kept}
    print(f"{scale}: {np.mean(rewards):.2f} +- {np.std(rewards, ddof=1) / GAMES**0.5:.2f}")
  OUT.write_text(json.dumps(out) + "\n")


def game(env, agent) -> tuple[float, list]:
  """(total reward, [user, film] of every step)."""
  total, played = 0.0, []
  state, _ = env.reset()
  for _ in range(STEPS):
    action = agent.act(state)
    after, reward, _, _ = env.step(state, action)
    agent.update(state, action, reward, {})
    played.append([state.index, action])
    total, state = total + float(reward), after
  return total, played


if __name__ == "__main__":
  main(sys.argv[1])
