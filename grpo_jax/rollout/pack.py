"""Completions of one prompt packed into one row: no arithmetic on padding.

Answers of very different lengths leave most of [N * G, T] empty. Packed, a row is a prompt, a unit
is a completion, and T holds the completions' tokens one after the other. Methods see the same
units and rollouts, so they give the same loss.
"""

from collections.abc import Callable

import numpy as np

from grpo_jax.types import Batch


def _places(length: np.ndarray) -> tuple[np.ndarray, ...]:
  """(prompt, completion, position, column) of every token, in packed order. length i[N, G]."""
  n, g = length.shape
  row = np.repeat(np.arange(n * g), length.reshape(-1))
  starts = np.cumsum(length, axis=1) - length
  first = np.cumsum(length.reshape(-1)) - length.reshape(-1)
  position = np.arange(row.size) - first[row]
  return row // g, row % g, position, starts.reshape(-1)[row] + position


def pack(batch: Batch, length: np.ndarray, bucket: Callable[[int], int]) -> Batch:
  """A batch of numpy rows [N * G, T] as rows [N, T'], T' = bucket(longest row). length i[N, G]."""
  n, g = length.shape
  prompt, completion, position, column = _places(length)
  width = bucket(max(int(length.sum(axis=1).max()), 1))

  def move(x, fill=0):
    if x is None:
      return None
    out = np.full((n, width), fill, x.dtype)
    out[prompt, column] = x[prompt * g + completion, position]
    return out

  def place(values, fill):
    out = np.full((n, width), fill, np.int32)
    out[prompt, column] = values
    return out

  assert batch.logp_old is None and batch.logp_ref is None and not batch.extra
  return batch.replace(
    tokens=move(batch.tokens),
    mask=move(batch.mask),
    logp_sampler=move(batch.logp_sampler),
    unit=place(completion, 0),
    unit_mask=(length > 0).astype(np.float32),
    owner=np.arange(n * g, dtype=np.int32).reshape(n, g),
    position=place(position, 0),
    segment=place(completion, -1),
  )


def unpack(x: np.ndarray, length: np.ndarray, width: int) -> np.ndarray:
  """A packed [N, T'] array as [N, G, width], 0 beyond each length."""
  n, g = length.shape
  prompt, completion, position, column = _places(length)
  out = np.zeros((n, g, width), x.dtype)
  out[prompt, completion, position] = x[prompt, column]
  return out
