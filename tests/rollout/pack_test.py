"""Packed rows hold the same tokens, units and rollouts as one row a completion."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_models as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax import methods
from grpo_jax.rollout.pack import pack, unpack
from grpo_jax.types import Fwd, Rollouts

N, G, T = 3, 4, 5
exact = lambda size: size
lengths = st.lists(st.integers(0, T), min_size=N * G, max_size=N * G).map(
  lambda x: np.asarray(x).reshape(N, G)
)


def flat(length, seed=0):
  """Batch of numpy rows with tokens 1, 2, 3, ... so that every place has its own id."""
  prompt, prompt_length, _ = tiny.problem(tiny.FAMILIES["llama"])
  tokens = np.arange(1, N * G * T + 1).reshape(N, G, T)
  mask = np.arange(T) < length[..., None]
  batch = jax.device_get(tiny.batch_of(prompt, prompt_length, tokens, mask))
  logp = np.random.default_rng(seed).normal(size=(N * G, T)).astype(np.float32)
  return dataclasses.replace(
    batch,
    unit_mask=(length.reshape(-1, 1) > 0).astype(np.float32),
    logp_sampler=np.where(batch.mask > 0, logp, 0),
  )


@settings(max_examples=30, deadline=None)
@given(length=lengths)
def test_every_trained_token_is_there_once_with_its_place_and_owner(length):
  batch = flat(length)
  rows = pack(batch, length, exact)
  assert rows.tokens.shape == (N, max(length.sum(1).max(), 1))
  assert rows.mask.sum() == length.sum()
  for n in range(N):
    trained = np.flatnonzero(rows.mask[n])
    expected = [(g, t) for g in range(G) for t in range(length[n, g])]
    np.testing.assert_array_equal(trained, np.arange(len(expected)))  # without gaps
    for column, (g, t) in zip(trained, expected, strict=True):
      assert rows.tokens[n, column] == batch.tokens[n * G + g, t]
      assert rows.logp_sampler[n, column] == batch.logp_sampler[n * G + g, t]
      assert (rows.segment[n, column], rows.position[n, column]) == (g, t)
      assert rows.owner[n, rows.unit[n, column]] == n * G + g
  np.testing.assert_array_equal(rows.unit_mask, length > 0)
  assert np.all(rows.segment[rows.mask == 0] == -1)
  again = unpack(rows.logp_sampler, length, T).reshape(N * G, T)
  np.testing.assert_array_equal(again, batch.logp_sampler)


def test_width_is_a_bucket():
  length = np.full((N, G), 2)
  assert pack(flat(length), length, lambda size: size + 3).tokens.shape == (N, 2 * G + 3)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "rloo", "dr_grpo"])
def test_a_method_gives_the_same_loss_on_packed_rows(name):
  length = np.random.default_rng(1).integers(0, T + 1, (N, G))
  batch = flat(length)
  reward = np.random.default_rng(2).integers(0, 2, (N, G)).astype(np.float32)
  method = methods.get(name, **({"max_tokens": T} if name == "dr_grpo" else {}))
  rollouts = Rollouts(
    prompt=np.arange(N, dtype=np.int32),
    reward=reward,
    alive=length > 0,
    correct=reward > 0,
    truncated=length == T,
    length=length.astype(np.int32),
  )
  moved = flat(length, seed=3)
  results = []
  for shape in (lambda b: b, lambda b: pack(b, length, exact)):
    old, new = shape(batch), shape(moved)
    old = jax.tree.map(np.asarray, old.replace(logp_old=old.logp_sampler))
    fwd = Fwd(logp=new.logp_sampler, entropy=np.abs(new.logp_sampler))
    results.append(method.loss(fwd, old, method.credit(method.init(N), rollouts, old))[0])
  assert abs(results[0]) > 1e-3
  np.testing.assert_allclose(*results, rtol=1e-5)
