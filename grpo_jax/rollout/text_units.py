"""Lines, turns and other pieces of a text as the units of its row, in numpy.

A unit ends with the token that completes the text `Sampling.cut`; what follows the last but one of
`Sampling.units` units is all one unit, however often it is cut.
"""

from typing import Any

import numpy as np

from grpo_jax.rollout.collect import Sampling


def units_of(texts: list[str], cut: str, units: int) -> np.ndarray:
  """i32[T], the unit of every token; texts: what each token adds."""
  ends = np.cumsum([len(t) for t in texts], dtype=np.int64)
  whole, at, done = "".join(texts), 0, []
  while (found := whole.find(cut, at)) >= 0:
    at = found + len(cut)
    done.append(at)  # the token whose text reaches so far completes it
  before = ends - np.asarray([len(t) for t in texts], np.int64)
  unit = np.searchsorted(np.asarray(done, np.int64), before, side="right")
  return np.minimum(unit, units - 1).astype(np.int32)


def fields(s: Sampling, tokens: np.ndarray, mask: np.ndarray, rewards: np.ndarray | None) -> dict:
  """unit, unit_mask, owner and unit_reward of `Batch`, for one rollout a row.

  tokens i32[R, T]; rewards f32[R, K], K <= U, of the units; units beyond K have 0.
  """
  rows, width = tokens.shape
  unit = np.zeros((rows, width), np.int32)
  for row in range(rows):
    size = int(mask[row].sum())
    texts = [s.tokenizer.token_texts[i] for i in tokens[row, :size].tolist()]
    unit[row, :size] = units_of(texts, s.cut, s.units)
  there = (unit[:, :, None] == np.arange(s.units)) & (mask > 0)[:, :, None]
  out: dict[str, Any] = {
    "unit": unit,
    "unit_mask": there.any(axis=1).astype(np.float32),
    "owner": np.repeat(np.arange(rows, dtype=np.int32)[:, None], s.units, axis=1),
  }
  if rewards is not None:
    short = s.units - rewards.shape[1]
    out["unit_reward"] = np.pad(np.nan_to_num(rewards), ((0, 0), (0, short))).astype(np.float32)
  return out
