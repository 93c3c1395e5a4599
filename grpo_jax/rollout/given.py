"""Demonstrations beside samples (`Flat.demonstrate`), as arrays of the host."""

from typing import Any

import numpy as np

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
  width = max(batch.tokens.shape[1], rows.tokens.shape[1])
  beside: Any = lambda a, b: np.concatenate([a, b], axis=1)
  wide: Any = lambda x: np.pad(x, ((0, 0), (0, width - x.shape[1])))

  def woven(a, b) -> Any:
    """[N G, ...] and [N, ...] as [N (G + 1), ...]."""
    both = beside(a.reshape(n, g, *a.shape[1:]), b.reshape(n, 1, *b.shape[1:]))
    return both.reshape(n * (g + 1), *a.shape[1:])

  small: Any = {
    name: beside(getattr(rollouts, name), getattr(shown, name))
    for name in ("reward", "alive", "correct", "truncated", "length")
  }
  if rollouts.parts is not None:
    small["parts"] = beside(rollouts.parts, np.zeros_like(rollouts.parts[:, :1]))
  large: Any = {
    name: woven(wide(getattr(batch, name)), wide(getattr(rows, name)))
    for name in ("tokens", "mask", "unit")
  }
  if batch.logp_sampler is not None:
    unknown = np.full((n, width), np.nan, np.float32)
    large["logp_sampler"] = woven(wide(batch.logp_sampler), unknown)
  given: Any = np.tile(np.arange(g + 1) == g, (n, 1))
  owner: Any = np.arange(n * (g + 1), dtype=np.int32)[:, None]
  unit_mask = woven(batch.unit_mask, rows.unit_mask)
  return (
    rollouts.replace(**small, given=given),
    batch.replace(**large, unit_mask=unit_mask, owner=owner),
  )
