"""What a bandit player's losses say: regret, its growth, exploration, and who beats whom.

`lost` f[B, T]: expected reward of the best arm minus that of the arm pulled, B games of T pulls.
Expected rewards rather than realised ones: the same mean, less variance.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from grpo_jax.errors import UserError


class Curve(NamedTuple):
  mean: np.ndarray  # f[T]
  error: np.ndarray  # f[T] standard error of the mean over games; 0 for one game


def regret(lost: np.ndarray) -> np.ndarray:
  """sum_{s <= t} lost_s, f[B, T]."""
  return np.cumsum(lost, axis=1)


def curve(values: np.ndarray) -> Curve:
  """Mean over games and its standard error."""
  games = len(values)
  error = values.std(axis=0, ddof=1) / np.sqrt(games) if games > 1 else np.zeros(values.shape[1:])
  return Curve(values.mean(axis=0), error)


def opt_frac(lost: np.ndarray) -> np.ndarray:
  """Share of the first t pulls that were of a best arm, f[B, T]."""
  return np.cumsum(lost <= 1e-6, axis=1) / np.arange(1, lost.shape[1] + 1)


def counts(action: np.ndarray, arms: int) -> np.ndarray:
  """n_a(t) after each pull, f[B, T, A]; sums to t."""
  return np.cumsum(np.eye(arms)[action], axis=1)


def min_frac(action: np.ndarray, arms: int) -> np.ndarray:
  """K min_a n_a(t) / t, f[B, T]: 1 if all arms were pulled alike, 0 if one never was.

  The convention of Krishnamurthy et al., recalled.
  """
  return arms * counts(action, arms).min(axis=2) / np.arange(1, action.shape[1] + 1)


def suffix_fail(lost: np.ndarray) -> np.ndarray:
  """Whether no best arm was pulled in the last half of the game, bool[B] (recalled, as above)."""
  return np.asarray(np.all(lost[:, lost.shape[1] // 2 :] > 1e-6, axis=1))


def least_gap(mean: np.ndarray) -> float:
  """Best mean minus the second best, f[A] -> f; NaN for a single arm."""
  if len(mean) < 2:
    return float("nan")
  second, best = np.sort(mean)[-2:]
  return float(best - second)


# ---- growth --------------------------------------------------------------------------------------


class Fit(NamedTuple):
  """lambda log(t)^alpha / gap + beta t + lambda2."""

  alpha: float
  beta: float
  scale: float  # lambda
  constant: float  # lambda2
  rmse: float

  def __call__(self, t, gap: float):
    t = np.asarray(t, float)
    return self.scale * np.log(t) ** self.alpha / gap + self.beta * t + self.constant


GRID = np.round(np.arange(0, 5.0001, 0.05), 2)


def fit(mean: np.ndarray, gap: float, grid: np.ndarray = GRID) -> Fit:
  """The paper's form for the regret after t = 1..T pulls; beta > 0 is linear regret.

  Non-negative least squares over (lambda, beta, lambda2) for each alpha of the grid, the smallest
  alpha among the best; the form is the paper's, the procedure our reading. Raises UserError for a
  gap that is not positive: a single arm, or equal ones, has no hardness.
  """
  if not gap > 0:
    raise UserError(f"fit: gap={gap}: the best two arms must differ; there is nothing to fit")
  t = np.arange(1, len(mean) + 1, dtype=float)
  best = None
  for alpha in grid:
    columns = np.stack([np.log(t) ** alpha / gap, t, np.ones_like(t)], axis=1)
    size = np.linalg.norm(columns, axis=0)
    found, residual = optimize.nnls(columns / size, mean)
    scale, beta, constant = found / size
    now = Fit(float(alpha), beta, scale, constant, residual / np.sqrt(len(t)))
    if best is None or now.rmse < best.rmse * (1 - 1e-6) - 1e-12:
      best = now
  assert best is not None
  return Fit(*(float(x) for x in best))


# ---- comparisons ---------------------------------------------------------------------------------


def beats(x: np.ndarray, y: np.ndarray, level: float = 0.05) -> bool:
  """Whether x has the higher mean and Welch's t-test tells it from y's, for trials [n] each."""
  if x.mean() <= y.mean():
    return False
  if x.std() < 1e-9 and y.std() < 1e-9:
    return True
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of trials that are all alike, which are no error here
    found: Any = stats.ttest_ind(x, y, equal_var=False)
  return bool(found.pvalue < level)


def win_rates(scores: dict[str, np.ndarray]) -> dict[str, float]:
  """Share of (configuration, opponent) pairs that a player beats; scores [configurations, trials]
  are expected total rewards. NaN for a player without opponents."""
  out = {}
  for name, mine in scores.items():
    others = [other for key, other in scores.items() if key != name]
    won = [beats(x, y) for other in others for x, y in zip(mine, other, strict=True)]
    out[name] = float(np.mean(won)) if won else float("nan")
  return out
