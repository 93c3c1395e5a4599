"""Policy losses per token: f32[R, T], to be minimized under `credit.weight`.

Throughout d = logp - sg(logp_old) is the log-ratio, r = exp(d), A the advantage, sg stop-gradient.
Apart from `reinforce` and `cispo` every term has the gradient -stable A r with respect to logp,
where `stable` is 1 unless a clip acts: the unified estimator (see core/unified.py).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core import units
from grpo_jax.types import Batch, Credit, Fwd, Metrics

MAX_LOG_RATIO = 20.0


def log_ratio(fwd: Fwd, batch: Batch) -> Float[Array, "R T"]:
  """d = logp - sg(logp_old), 0 off the mask.

  Without `batch.logp_old` the batch is taken to come from the present policy (one update a batch):
  logp_old = sg(logp), so r is 1 in value, its gradient is that of logp, and no clip acts.
  """
  old = fwd.logp if batch.logp_old is None else batch.logp_old
  return units.masked(fwd.logp - jax.lax.stop_gradient(old), batch)


def sequence_log_ratio(log_ratio: Float[Array, "R T"], batch: Batch) -> Float[Array, "R T"]:
  """log s = mean of d over the unit's trained tokens, on each of them   (GSPO, 2507.18071, eq 7).

  The gradient reaches all tokens of the unit. Under weights that are equal inside a unit it is the
  same as that of `token_form`.
  """
  return units.spread(units.pool_mean(log_ratio, batch), batch)


def token_form(log_ratio: Float[Array, "R T"], batch: Batch) -> Float[Array, "R T"]:
  """log sg(s) + logp - sg(logp): the value of s, a gradient to the own token only (GSPO, eq 14)."""
  mean = jax.lax.stop_gradient(sequence_log_ratio(log_ratio, batch))
  return mean + log_ratio - jax.lax.stop_gradient(log_ratio)


def ratio_of(log_ratio: Float[Array, "R T"]) -> Float[Array, "R T"]:
  """exp(d) with d held within +-20; beyond that the gradient is 0 (`metrics` counts it)."""
  return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def clipped(
  log_ratio: Float[Array, "R T"],
  adv: Float[Array, "R T"],
  *,
  eps_low: float,
  eps_high: float,
  dual_clip: float | None = None,
) -> Float[Array, "R T"]:
  """-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)   (PPO, 1707.06347, equation 7).

  Written out by the sign of A, which also gives a gradient of exactly 0 or -A r:
    A >= 0: -A min(r, 1 + eps_high);   A < 0: -A max(r, 1 - eps_low), r there at most `dual_clip`.
  """
  r = ratio_of(log_ratio)
  for_negative = jnp.maximum(r, 1 - eps_low)
  if dual_clip is not None:
    for_negative = jnp.minimum(for_negative, dual_clip)
  return -adv * jnp.where(adv >= 0, jnp.minimum(r, 1 + eps_high), for_negative)


def cispo(
  log_ratio: Float[Array, "R T"],
  logp: Float[Array, "R T"],
  adv: Float[Array, "R T"],
  batch: Batch,
  *,
  eps_high: float,
  eps_low: float | None = None,
) -> Float[Array, "R T"]:
  """-sg(clip(r, 1 - eps_low, 1 + eps_high)) A logp   (MiniMax-M1, 2506.13585, eq 4 and 5).

  The clipped ratio is a constant: without sg the sign of the gradient flips for logp < -1. No lower
  bound unless `eps_low` is given.
  """
  low = 0.0 if eps_low is None else 1 - eps_low
  r = jax.lax.stop_gradient(jnp.clip(ratio_of(log_ratio), low, 1 + eps_high))
  return -r * adv * units.masked(logp, batch)


def reinforce(
  logp: Float[Array, "R T"], adv: Float[Array, "R T"], batch: Batch
) -> Float[Array, "R T"]:
  """-A logp: the score function estimator, ratio 1 in the unified form."""
  return -adv * units.masked(logp, batch)


def clip_sides(
  log_ratio: Float[Array, "R T"], adv: Float[Array, "R T"], *, eps_low: float, eps_high: float
) -> tuple[Bool[Array, "R T"], Bool[Array, "R T"]]:
  """Where PPO's clip acts: (A < 0 and r < 1 - eps_low, A > 0 and r > 1 + eps_high)."""
  r = ratio_of(log_ratio)
  return (adv < 0) & (r < 1 - eps_low), (adv > 0) & (r > 1 + eps_high)


def metrics(
  log_ratio: Float[Array, "R T"],
  adv: Float[Array, "R T"],
  credit: Credit,
  *,
  eps_low: float,
  eps_high: float,
) -> Metrics:
  """What a ratio loss logs. Shares are of the loss weight: divide by `weight` if it is not 1.

  Everything adds up over micro-batches but `max_ratio`, which is combined by max (as every metric
  whose name starts with "max_").
  """
  low, high = clip_sides(log_ratio, adv, eps_low=eps_low, eps_high=eps_high)
  return _metrics(log_ratio, credit, low, high)


def bound_metrics(
  log_ratio: Float[Array, "R T"], credit: Credit, *, eps_low: float | None, eps_high: float
) -> Metrics:
  """`metrics` of a ratio that is bounded whatever the sign of A (CISPO)."""
  r = ratio_of(log_ratio)
  low = jnp.zeros(r.shape, bool) if eps_low is None else r < 1 - eps_low
  return _metrics(log_ratio, credit, low, r > 1 + eps_high)


def _metrics(log_ratio, credit, low, high):
  log_ratio = jax.lax.stop_gradient(log_ratio)
  share = lambda where: jnp.sum(jnp.where(where, credit.weight, 0))
  return {
    "clip_low": share(low),
    "clip_high": share(high),
    "log_ratio_clamped": share(jnp.abs(log_ratio) > MAX_LOG_RATIO),
    "weight": jnp.sum(credit.weight),
    "max_ratio": jnp.max(jnp.where(credit.weight > 0, ratio_of(log_ratio), 0)),
  }
