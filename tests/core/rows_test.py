"""Whatever is done to a batch, every token still finds its rollout: permuted, taken, cut, joined.

Each rollout and each trained token carries the same random name, so `owner` is right exactly where
the two agree; both in numpy and in jax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.core import rows, units
from grpo_jax.errors import UserError
from grpo_jax.types import Batch, Rollouts

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
both = pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])


def made(rng, n, g, layout, t=5):
  """(rollouts, batch) in numpy; a rollout's reward is its name and so are its tokens."""
  name = rng.permutation(1000)[: n * g].reshape(n, g)
  length = rng.integers(1, t + 1, n * g)
  if layout == "plain":  # a row a rollout
    owner = np.arange(n * g)[:, None]
    unit = np.zeros((n * g, t), int)
    mask = np.arange(t) < length[:, None]
  elif layout == "halves":  # a rollout is two rows
    owner = np.arange(n * g).repeat(2)[:, None]
    unit = np.zeros((2 * n * g, t), int)
    mask = np.arange(t) < length.repeat(2)[:, None]
  else:  # packed: a row a prompt, a unit a rollout
    owner = np.arange(n * g).reshape(n, g)
    unit = np.broadcast_to(np.arange(g).repeat(t), (n, g * t))
    mask = (np.arange(t) < length[:, None]).reshape(n, g * t)
  tokens = np.take_along_axis(name.reshape(-1)[owner], unit, axis=1) * mask
  rollouts = Rollouts(
    prompt=rng.permutation(100)[:n].astype(np.int32),
    reward=name.astype(np.float32),
    alive=np.ones((n, g), bool),
    correct=rng.uniform(size=(n, g)) < 0.5,
    truncated=np.zeros((n, g), bool),
    length=length.reshape(n, g).astype(np.int32),
    step=np.int32(7),
  )
  batch = Batch(
    tokens=tokens.astype(np.int32),
    mask=mask.astype(np.float32),
    unit=unit.astype(np.int32),
    unit_mask=np.ones(owner.shape, np.float32),
    owner=owner.astype(np.int32),
    prompt_tokens=rollouts.prompt[:, None].repeat(3, axis=1),
    prompt_length=rng.integers(1, 4, n).astype(np.int32),
    extra={"name": np.float32(tokens)},
  )
  return rollouts, batch


def check(rollouts, batch, xp):
  """Tokens, prompts and lengths agree with the rollout that `owner` names."""
  for x in jax.tree.leaves((rollouts, batch)):
    assert isinstance(x, np.ndarray | np.generic if xp is np else jax.Array)
  rollouts, batch = jax.tree.map(jnp.asarray, (rollouts, batch))
  assert batch.owner.dtype == jnp.int32
  on = np.asarray(batch.mask) > 0
  found = units.spread(units.of_owner(rollouts.reward, batch), batch)
  np.testing.assert_array_equal(np.asarray(batch.tokens)[on], np.asarray(found)[on])
  np.testing.assert_array_equal(np.asarray(batch.extra["name"])[on], np.asarray(found)[on])
  np.testing.assert_array_equal(batch.prompt_tokens[:, 0], rollouts.prompt)


def lengths(rollouts, batch):
  return np.asarray(units.token_count(*jax.tree.map(jnp.asarray, (batch, rollouts))))


layouts = st.sampled_from(["plain", "halves", "packed"])


@both
@quick
@given(seed=seeds, layout=layouts)
def test_owner_survives_taking_prompts_in_any_order_and_twice(xp, seed, layout):
  rng = np.random.default_rng(seed)
  rollouts, batch = jax.tree.map(xp.asarray, made(rng, 4, 3, layout))
  for order in (rng.permutation(4), rng.permutation(4)[:2], np.array([2, 2, 0])):
    kept, taken = rows.take_prompts(rollouts, batch, xp.asarray(order))
    check(kept, taken, xp)
    np.testing.assert_array_equal(kept.reward, np.asarray(rollouts.reward)[order])
    np.testing.assert_array_equal(lengths(kept, taken), lengths(rollouts, batch)[order])


@both
@quick
@given(seed=seeds, layout=layouts)
def test_pieces_hold_every_prompt_once_and_interleave_puts_their_rows_back(xp, seed, layout):
  rng = np.random.default_rng(seed)
  rollouts, batch = jax.tree.map(xp.asarray, made(rng, 6, 2, layout))
  cut = []
  for index in range(3):
    kept, taken = rows.piece((rollouts, batch), 6, 3, index)
    taken = rows.recounted(taken, kept.reward.shape)
    check(kept, taken, xp)
    np.testing.assert_array_equal(kept.prompt, np.asarray(rollouts.prompt)[index::3])
    cut.append(taken.tokens)
  np.testing.assert_array_equal(rows.interleave(xp.stack(cut), 6), batch.tokens)


def test_a_traced_index_gives_the_same_piece():
  rollouts, batch = jax.tree.map(jnp.asarray, made(np.random.default_rng(0), 6, 2, "plain"))
  cut = jax.jit(lambda index: rows.piece((rollouts, batch), 6, 3, index))
  for index in range(3):
    jax.tree.map(
      np.testing.assert_array_equal,
      cut(index),
      rows.piece((rollouts, batch), 6, 3, index),
    )


@both
@quick
@given(seed=seeds, layout=layouts, other=layouts)
def test_joined_groups_keep_their_rollouts_and_come_first_to_last(xp, seed, layout, other):
  rng = np.random.default_rng(seed)
  first = made(rng, 3, 2, layout)
  second = made(rng, 3, 1, other, t=4)
  second = (second[0].replace(prompt=first[0].prompt), second[1])
  a, b = jax.tree.map(xp.asarray, (first, second))
  rollouts, batch = rows.join_rollouts(*a, *b)
  check(rollouts, batch, xp)
  np.testing.assert_array_equal(rollouts.reward[:, :2], first[0].reward)
  np.testing.assert_array_equal(rollouts.reward[:, 2:], second[0].reward)
  np.testing.assert_array_equal(
    lengths(rollouts, batch), np.concatenate([lengths(*a), lengths(*b)], axis=1)
  )
  assert rollouts.step == 7


@both
def test_the_plain_layout_and_back(xp):
  owner = rows.owners(3, 2, units=4, xp=xp)
  assert owner.shape == (6, 4) and owner.dtype == np.int32
  prompt, place = rows.split_owner(owner, 2)
  np.testing.assert_array_equal(prompt[:, 0], [0, 0, 1, 1, 2, 2])
  np.testing.assert_array_equal(place[:, 0], [0, 1] * 3)
  np.testing.assert_array_equal(rows.regrouped(owner, 2, 5, first=3)[:, 1], [3, 4, 8, 9, 13, 14])


def test_fields_that_only_one_of_two_has_are_refused():
  (a, b), (c, d) = (made(np.random.default_rng(s), 2, 2, "plain") for s in (0, 1))
  with pytest.raises(UserError, match="^Batch: both have to have the same fields"):
    rows.join_rollouts(a, b.replace(logp_old=b.mask), c, d)
