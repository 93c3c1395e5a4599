"""Aggregates over worlds and seeds, by rliable's definitions (Agarwal et al. 2021, 2108.13264).

Scores are [seeds, worlds]. Intervals are percentiles of a bootstrap that draws seeds anew in every
world by itself (stratified), which keeps each world's share.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
  value: float
  low: float  # 95% interval
  high: float


def iqm(scores: np.ndarray) -> float:
  """Mean of the middle half of all scores."""
  return float(stats.trim_mean(np.asarray(scores).reshape(-1), 0.25))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
  """Mean over worlds of P(x > y) + P(x = y) / 2 for a seed of each, [seeds, worlds] both."""
  more = x[:, None] > y[None]
  equal = x[:, None] == y[None]
  return float(np.mean(more + 0.5 * equal))


def _resampled(rng, scores):
  seeds, worlds = scores.shape
  return scores[rng.integers(0, seeds, (seeds, worlds)), np.arange(worlds)]


def bootstrap(statistic, *samples: np.ndarray, repeats: int = 2000, seed: int = 0) -> Estimate:
  """statistic(*samples) and its 95% interval."""
  rng = np.random.default_rng(seed)
  drawn = [statistic(*(_resampled(rng, s) for s in samples)) for _ in range(repeats)]
  low, high = np.percentile(drawn, [2.5, 97.5])
  return Estimate(statistic(*samples), float(low), float(high))


def curve(values: np.ndarray) -> dict[str, list[float]]:
  """Interquartile mean over seeds and its interval at each point; values [seeds, points]."""
  points = [bootstrap(iqm, values[:, [i]], repeats=500) for i in range(values.shape[1])]
  return {name: [getattr(p, name) for p in points] for name in Estimate._fields}
