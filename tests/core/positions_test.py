"""Returns minus their mean over the group at the same column, against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core import positions
from grpo_jax.errors import UserError
from grpo_jax.types import Batch, Rollouts

N, G, T, U = 2, 3, 6, 2


def layout(seed):
  rng = np.random.default_rng(seed)
  length = rng.integers(2, T + 1, N * G)
  mask = np.arange(T) < length[:, None]
  mask[:, 1] = rng.uniform(size=N * G) < 0.5  # tokens between turns
  unit = np.broadcast_to(np.arange(T) >= 3, mask.shape).astype(np.int32)
  alive = np.ones((N, G), bool)
  alive[1, 2] = False
  none = np.zeros((N, G), bool)
  rollouts = Rollouts(
    prompt=jnp.arange(N), reward=jnp.zeros((N, G)), alive=jnp.asarray(alive), correct=none,
    truncated=none, length=jnp.asarray(length.reshape(N, G)),
  )  # fmt: skip
  batch = Batch(
    tokens=jnp.zeros((N * G, T), jnp.int32), mask=jnp.asarray(mask, jnp.float32),
    unit=jnp.asarray(unit), unit_mask=jnp.ones((N * G, U)),
    owner=jnp.broadcast_to(jnp.arange(N * G, dtype=jnp.int32)[:, None], (N * G, U)),
  )  # fmt: skip
  return rollouts, batch, mask, unit, rng.normal(size=(N * G, U)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_return_minus_its_mean_at_the_column(seed):
  rollouts, batch, mask, unit, reward = layout(seed)
  coming = np.zeros((N * G, T))
  for r in range(N * G):
    for u in range(U):
      at = np.flatnonzero(mask[r] & (unit[r] == u))
      if len(at):
        coming[r, : at[-1] + 1] += reward[r, u]
  inside = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > 0
  expected = np.zeros((N * G, T))
  alive = np.asarray(rollouts.alive).reshape(-1)
  for r, t in np.argwhere(mask):
    group = [q for q in range(r // G * G, r // G * G + G) if alive[q] and inside[q, t]]
    if alive[r] and len(group) > 1:
      expected[r, t] = coming[r, t] - np.mean(coming[group, t])
  found = positions.centered_returns(jnp.asarray(reward), batch, rollouts)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_several_rollouts_a_row_are_refused():
  rollouts, batch, *_, reward = layout(0)
  short = batch.replace(tokens=batch.tokens[:2])
  with pytest.raises(UserError, match="one rollout a row"):
    positions.centered_returns(jnp.asarray(reward), short, rollouts)
