"""Success rates of prompts, kept from visit to visit: arrays over all Q prompts, indexed by id.

A tracker is a Beta posterior with forgetting. A visit with rewards r_1..r_k (k alive) does
  alpha <- rho alpha + sum r,   beta <- rho beta + sum (1 - r)
so with k = 1 the value v = alpha / n, n = alpha + beta, moves by eta (r - v), where eta is
1 / (rho n + 1): a form that needs no r in {0, 1}. "Single-stream Policy Optimization", 2025.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.errors import UserError
from grpo_jax.types import Record, Rollouts, record


@record
class Tracker(Record):
  alpha: Float[Array, " Q"]
  beta: Float[Array, " Q"]

  @property
  def count(self) -> Float[Array, " Q"]:
    """Effective number of visits."""
    return self.alpha + self.beta

  @property
  def value(self) -> Float[Array, " Q"]:
    return self.alpha / self.count


def prior(num_prompts: int, solved=None, tried: int = 0, count: float = 1.0) -> Tracker:
  """alpha = count (s + 1/2) / (tried + 1), s = solved[q] of `tried` answers; 1/2, 1/2 without.

  Raises UserError unless `solved` has one entry a prompt.
  """
  if solved is None:
    half = jnp.full(num_prompts, 0.5, jnp.float32)
    return Tracker(alpha=half, beta=half)
  solved = jnp.asarray(solved, jnp.float32)
  if solved.shape != (num_prompts,):
    raise UserError(f"solved: {solved.size} entries, but there are {num_prompts} prompts")
  scale = count / (tried + 1)
  return Tracker(alpha=scale * (solved + 0.5), beta=scale * (tried - solved + 0.5))


def visited(
  tracker: Tracker, rollouts: Rollouts, reward: Float[Array, "N G"], rho: Float[Array, " N"]
) -> Tracker:
  """The tracker after these rollouts. A prompt without alive rollouts was not visited.

  All visits of a prompt in the batch count under one decay, the strongest of theirs.
  """
  prompt, alive = rollouts.prompt, rollouts.alive
  dtype = tracker.alpha.dtype
  total = jnp.sum(jnp.where(alive, reward, 0), axis=1).astype(dtype)
  tries = jnp.sum(alive, axis=1, dtype=dtype)
  decay = jnp.ones_like(tracker.alpha)
  decay = decay.at[prompt].min(jnp.where(tries > 0, rho.astype(dtype), 1))
  return Tracker(
    alpha=(decay * tracker.alpha).at[prompt].add(total),
    beta=(decay * tracker.beta).at[prompt].add(tries - total),
  )


def forgetting(
  drift: Float[Array, " N"], half: float, low: float, high: float
) -> Float[Array, " N"]:
  """rho = clip(2^(-drift / half), low, high)."""
  return jnp.clip(jnp.exp2(-drift / half), low, high)


def uncertainty(tracker: Tracker, *, floor: float, power: float = 0.0) -> Float[Array, " Q"]:
  """sqrt(v (1 - v)) / n^power + floor: weights of the prompts; v held in [0, 1]."""
  v = jnp.clip(tracker.value, 0, 1)
  return jnp.sqrt(v * (1 - v)) / tracker.count**power + floor


@record
class Past(Record):
  """The last completion of every prompt and its log-probabilities when it was stored."""

  tokens: Int[Array, "Q T"]
  mask: Float[Array, "Q T"]  # all 0: never visited
  logp: Float[Array, "Q T"]


def no_past(num_prompts: int, max_tokens: int) -> Past:
  shape = (num_prompts, max_tokens)
  zero = jnp.zeros(shape, jnp.float32)
  return Past(tokens=jnp.zeros(shape, jnp.int32), mask=zero, logp=zero)


def drift(
  logp_then: Float[Array, "N T"], logp_now: Float[Array, "N T"], mask: Float[Array, "N T"]
) -> Float[Array, " N"]:
  """Mean over the tokens of |logp_then - logp_now|; 0 for a prompt that was never visited."""
  gap = jnp.where(mask > 0, jnp.abs(logp_then - logp_now), 0)
  return jnp.sum(gap, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)


def store(
  past: Past,
  prompt: Int[Array, " N"],
  tokens: Int[Array, "N T"],
  mask: Float[Array, "N T"],
  logp: Float[Array, "N T"],
  keep: Bool[Array, " N"],
) -> Past:
  """`past` with these completions where `keep`; of several of one prompt the last of the batch."""
  n = prompt.shape[0]
  later = jnp.tri(n, k=-1, dtype=bool).T & keep[None, :]
  beaten = jnp.any((prompt[:, None] == prompt[None, :]) & later, axis=1)
  at = jnp.where(keep & ~beaten, prompt, past.tokens.shape[0])  # out of range: dropped
  new = Past(tokens=tokens, mask=mask, logp=logp)
  return jax.tree.map(lambda old, x: old.at[at].set(x, mode="drop"), past, new)
