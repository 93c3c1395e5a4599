"""How far the policy has moved on the previous completion of each prompt: the need "drift", which
methods read from `now.metrics` ("Single-stream Policy Optimization", 2025, paper 68).

  D(x) = mean over the tokens of y' of |logp of y' when it was stored - logp of y' now|

y' is the first completion of x at its last visit, stored with the log-probabilities of the policy
after that visit's update; now is after this step's update. The first visit has D = 0. It costs a
pass over two completions a prompt, and the memory of one completion for every prompt.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core import trackers
from grpo_jax.rollout import prefixes
from grpo_jax.types import Batch, Rollouts


def after(
  score, params: Any, past: trackers.Past, rollouts: Rollouts, batch: Batch
) -> tuple[Float[Array, " N"], trackers.Past]:
  """(D, the completions brought up to date) by `params`, those after the update.

  One row a rollout, no wider than what is kept. score(params, batch) -> Fwd; no gradient.
  """
  prompt, size = rollouts.prompt, past.tokens.shape[1]
  n, t = prompt.shape[0], batch.tokens.shape[1]
  latest = lambda x: jnp.pad(x.reshape(n, -1, t)[:, 0], ((0, 0), (0, size - t)))
  tokens, mask = latest(batch.tokens), latest(batch.mask)
  now = _score(
    score,
    params,
    jnp.stack([past.tokens[prompt], tokens], axis=1),
    jnp.stack([past.mask[prompt], mask], axis=1),
    batch,
  )
  moved = trackers.drift(past.logp[prompt], now[:, 0], past.mask[prompt])
  return moved, trackers.store(past, prompt, tokens, mask, now[:, 1], rollouts.alive[:, 0])


def _score(score, params: Any, tokens, mask, batch: Batch) -> Float[Array, "N 2 T"]:
  n, two, t = tokens.shape
  rows = prefixes.scored_rows(tokens.reshape(n * two, t), mask.reshape(n * two, t), batch)
  return score(params, rows).logp.reshape(n, two, t)
