"""The shared losses against float64 loops, term by term, and what dead units may hold."""

import numpy as np
import problems
import pytest

from grpo_jax.core import objectives
from grpo_jax.errors import UserError
from grpo_jax.types import Credit

ALL = ("ref", "entropy", "value")


def prepared(seed=0, layout="shared", dead=0.0, **kwargs):
  """A batch with everything a loss may read, and a random credit with some weights of 0."""
  p = problems.ragged(seed, dead=dead, holes=0.2, spread=0.5, **kwargs)
  _, batch, fwd, _ = problems.lay_out(p, layout, ALL)
  rng = np.random.default_rng([seed, 3])
  shape = batch.tokens.shape
  weight = rng.uniform(size=shape) * (rng.uniform(size=shape) > 0.2) * np.asarray(batch.mask)
  credit = Credit(
    adv=np.float32(rng.normal(size=batch.owner.shape)),
    weight=np.float32(weight),
    extra={"target": np.float32(rng.normal(size=shape))},
    weights={"kl": np.float32(rng.uniform(size=shape) * (weight > 0))},
  )
  return batch, fwd, credit


def log_ratios(batch, fwd, bound=np.inf):
  """(of the token, mean of its unit) f64, by loops over the masked tokens."""
  mask, unit = np.asarray(batch.mask) > 0, np.asarray(batch.unit)
  own = np.where(mask, np.float64(fwd.logp) - np.float64(batch.logp_old), 0).clip(-bound, bound)
  mean = np.zeros_like(own)
  for r, t in np.argwhere(mask):
    mean[r, t] = np.mean([own[r, s] for s in np.flatnonzero(mask[r]) if unit[r, s] == unit[r, t]])
  return own, mean


def transcribed(batch, fwd, credit, *, ratio, eps, dual=np.inf, bound=np.inf):
  """sum weight -min(r A, clip(r) A), r below `dual` where A < 0."""
  own, mean = log_ratios(batch, fwd, bound)
  r = np.exp(own if ratio == "token" else mean)
  total = 0.0
  for row, t in np.argwhere(np.asarray(credit.weight) > 0):
    adv = float(credit.adv[row, int(batch.unit[row, t])])
    x = float(r[row, t])
    if adv < 0:
      x = min(x, dual)
    total -= credit.weight[row, t] * min(x * adv, float(np.clip(x, 1 - eps, 1 + eps)) * adv)
  return total


@pytest.mark.parametrize("ratio", objectives.RATIOS)
@pytest.mark.parametrize("layout", ["flat", "shared"])
def test_clipped_is_the_formula_for_every_ratio(ratio, layout):
  batch, fwd, credit = prepared(layout=layout)
  objective = objectives.clipped(eps_low=0.2, eps_high=0.2, ratio=ratio)
  loss, metrics = objective.loss(fwd, batch, credit)
  np.testing.assert_allclose(loss, transcribed(batch, fwd, credit, ratio=ratio, eps=0.2), rtol=2e-5)
  assert metrics["clip_low"] > 0 and metrics["clip_high"] > 0


def test_bounds_on_the_ratio_are_those_asked_for():
  batch, fwd, credit = prepared(seed=1)
  given = {"eps_low": 0.2, "eps_high": 0.2, "dual_clip": 1.3, "max_log_ratio": 0.4}
  loss, _ = objectives.clipped(**given).loss(fwd, batch, credit)
  expected = transcribed(batch, fwd, credit, ratio="token", eps=0.2, dual=1.3, bound=0.4)
  np.testing.assert_allclose(loss, expected, rtol=2e-5)
  loose = transcribed(batch, fwd, credit, ratio="token", eps=0.2)
  assert abs(loose - expected) > 1e-3


def test_each_further_term_adds_its_coefficient_times_its_weighted_sum():
  batch, fwd, credit = prepared(seed=2)
  batch = batch.replace(extra={"value": fwd.value * 0.5 + 0.1})
  clip = {"eps_low": 0.2, "eps_high": 0.2}
  plain, _ = objectives.clipped(**clip).loss(fwd, batch, credit)
  w, mask = np.float64(credit.weight), np.asarray(batch.mask) > 0
  x = np.where(mask, np.float64(fwd.logp) - np.float64(batch.logp_ref), 0)
  k3 = np.exp(-x) - 1 + x
  value, old = (np.where(mask, np.float64(v), 0) for v in (fwd.value, batch.extra["value"]))
  target = np.float64(credit.extra["target"])
  error = np.maximum((value - target) ** 2, (old + (value - old).clip(-0.2, 0.2) - target) ** 2)
  for more, expected in (
    ({"beta_kl": 0.3, "kl": "k3"}, 0.3 * (w * k3).sum()),
    ({"beta_kl": 0.3, "kl": "k3", "kl_apart": True}, 0.3 * (credit.weights["kl"] * k3).sum()),
    ({"beta_entropy": 0.3}, -0.3 * (w * np.where(mask, fwd.entropy, 0)).sum()),
    ({"value_coef": 0.3, "eps_value": 0.2}, 0.3 * (w * error).sum()),
  ):
    loss, _ = objectives.clipped(**clip, **more).loss(fwd, batch, credit)
    np.testing.assert_allclose(float(loss) - float(plain), expected, rtol=2e-4, atol=1e-6)


def test_needs_name_what_the_terms_read():
  clip = {"eps_low": 0.2, "eps_high": 0.2}
  assert objectives.clipped(**clip).needs == ()
  assert objectives.clipped(**clip, beta_kl=0.1, beta_entropy=0.1).needs == ("ref", "entropy")
  assert objectives.clipped(**clip, value_coef=0.0).needs == ("value", "logp_old")


def test_a_unit_without_weight_may_hold_nan_and_one_with_some_keeps_all_its_tokens():
  batch, fwd, credit = prepared(seed=3)
  unit = np.asarray(batch.unit) == 1
  weight = np.where(unit, 0, credit.weight)
  unused = credit.replace(weight=weight)
  for objective in (
    objectives.clipped(eps_low=0.2, eps_high=0.2, ratio="unit", beta_kl=0.1, beta_entropy=0.1),
    objectives.score_function(),
  ):
    clean, _ = objective.loss(fwd, batch, unused)
    bad = lambda x: np.where(unit, np.nan, x)
    dirty = fwd.replace(logp=bad(fwd.logp), entropy=bad(fwd.entropy))
    assert objective.loss(dirty, batch.replace(logp_ref=bad(batch.logp_ref)), unused)[0] == clean
  partly = credit.replace(weight=np.where(np.arange(weight.shape[1]) % 2, credit.weight, 0))
  loss, _ = objectives.clipped(eps_low=0.2, eps_high=0.2, ratio="unit").loss(fwd, batch, partly)
  expected = transcribed(batch, fwd, partly, ratio="unit", eps=0.2)
  np.testing.assert_allclose(loss, expected, rtol=2e-5)


@pytest.mark.parametrize("bad", [{"kl": "k4", "beta_kl": 0.1}, {"ratio": "tokn"}])
def test_an_unknown_name_is_refused_when_the_objective_is_made(bad):
  with pytest.raises(UserError, match=next(iter(bad))):
    objectives.clipped(eps_low=0.2, eps_high=0.2, **bad)
