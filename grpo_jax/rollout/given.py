"""Demonstrations beside samples (`Flat.demonstrate`), as arrays of the host."""

import numpy as np

from grpo_jax.core.rows import join_rollouts
from grpo_jax.types import Batch, Rollouts


def append(
  rollouts: Rollouts, batch: Batch, shown: Rollouts, rows: Batch
) -> tuple[Rollouts, Batch]:
  """G sampled completions a prompt and one given one as [N, G + 1], in a row each.

  Both in the plain layout; `shown` is [N, 1], for the same prompts in the same order. Rows are
  filled up to the longer width. The parts of a given completion's reward are 0, and what the
  sampler says of its tokens is NaN.
  """
  n, g = rollouts.reward.shape
  if rollouts.parts is not None:
    shown = shown.replace(parts=np.zeros((n, 1, rollouts.parts.shape[2]), np.float32))
  if batch.logp_sampler is not None:
    rows = rows.replace(logp_sampler=np.full(rows.tokens.shape, np.nan, np.float32))
  whole, joined = join_rollouts(rollouts, batch, shown, rows)
  return whole.replace(given=np.tile(np.arange(g + 1) == g, (n, 1))), joined
