"""No held-out prompt is ever trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax import envs
from grpo_jax.envs import split
from grpo_jax.errors import UserError

WORLDS = {
  "sequence": {"items": 4},
  "countdown": {},
  "key_door": {},  # 504 prompts
  "ranked_list": {"items": 4},
}


def texts(problems):
  tokens, length = np.asarray(problems.tokens), np.asarray(problems.length)
  return [tuple(t[:n]) for t, n in zip(tokens.tolist(), length, strict=True)]


@pytest.mark.parametrize("name", WORLDS)
def test_held_out_prompts_are_met_neither_in_training_nor_in_the_warm_start(name):
  world = envs.get(name, **WORLDS[name])
  known = split.split_of(world, 3, "hash", 1500, 200)
  held = set(texts(known.held()))
  warm = jax.jit(lambda key: known.warm(key, 500)[1])
  met = [*texts(known.train(jnp.arange(1500))), *texts(known.probe(64))]
  for i in range(4):
    met += texts(warm(jax.random.key(i)))
  assert len(held) >= split.LEAST and held.isdisjoint(met) and len(set(met)) > 300


def test_by_number_prompts_are_shared_and_problems_are_those_of_before():
  world = envs.get("modular_addition")
  known = split.split_of(world, 0, "id", 64, 32)
  assert set(texts(known.held())) & set(texts(known.train(jnp.arange(64))))
  expected = world.problems(0, (1 << 29) + jnp.arange(32))
  np.testing.assert_array_equal(known.held().tokens, expected.tokens)
  ids, _ = known.warm(jax.random.key(1), 16)
  again = (1 << 28) + jax.random.randint(jax.random.key(1), (16,), 0, 1 << 28)
  np.testing.assert_array_equal(ids, again)


@given(rows=st.lists(st.lists(st.integers(2, 63), min_size=1, max_size=9), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_hash_is_that_of_the_tokens_alone_in_numpy_and_in_jax(rows):
  size = max(map(len, rows))
  tokens = np.asarray([r + [0] * (size - len(r)) for r in rows], np.int32)
  length = np.asarray([len(r) for r in rows], np.int32)
  found = split.prompt_hash(tokens, length)
  same = split.prompt_hash(jnp.asarray(tokens), jnp.asarray(length), jnp)
  wider = np.pad(tokens, ((0, 0), (0, 3)), constant_values=5)
  np.testing.assert_array_equal(found, same)
  np.testing.assert_array_equal(found, split.prompt_hash(wider, length))
  for a, x in zip(rows, found, strict=True):
    for b, y in zip(rows, found, strict=True):
      assert (a == b) == (x == y)


def test_a_quarter_of_the_prompts_is_held_out_whatever_their_last_token():
  tokens = np.stack(np.meshgrid(*[np.arange(2, 34)] * 3), -1).reshape(-1, 3).astype(np.int32)
  held = split.is_held(split.prompt_hash(tokens, np.full(len(tokens), 3)))
  for place in range(3):
    by_token = [held[tokens[:, place] == t].mean() for t in range(2, 34)]
    spread = np.sqrt(0.25 * 0.75 / 1024)
    assert np.all(abs(np.subtract(by_token, 0.25)) < 4.5 * spread)
    assert np.std(by_token) > spread / 2


@pytest.mark.parametrize("name", ["hidden_number", "modular_addition", "noisy_verdict"])
def test_a_world_with_too_few_prompts_is_refused_in_one_line(name):
  with pytest.raises(UserError, match='split="hash": world .* use split="id"') as error:
    split.split_of(envs.get(name), 0, "hash", 64, 8)
  assert "\n" not in str(error.value)


def test_a_split_can_be_asked_for_while_a_run_is_traced():
  world = envs.get("sequence", items=4)
  inside = jax.jit(lambda: split.split_of(world, 5, "hash", 8, 4).held().tokens)()
  np.testing.assert_array_equal(inside, split.split_of(world, 5, "hash", 8, 4).held().tokens)
