"""Learning histories written through tensorflow-datasets come back as they were, in their order."""

import pathlib
import sys

import jax
import numpy as np
import pytest

from grpo_jax.core.transitions import Histories, Transitions
from grpo_jax.data import tfds_history_source as stored
from grpo_jax.data import tfds_source
from grpo_jax.data.problem import Problem
from grpo_jax.errors import UserError


def histories(tasks, learners=3, steps=7, seed=0, continuous=False):
  rng = np.random.default_rng(seed)
  lead = tasks, learners, steps
  numbers = lambda *shape: rng.normal(size=(*lead, *shape)).astype(np.float32)
  action = numbers(2) if continuous else rng.integers(0, 5, lead).astype(np.int32)
  return Histories(
    tasks={
      "goal": rng.integers(0, 9, (tasks, 2)).astype(np.int32),
      "speed": rng.normal(size=tasks).astype(np.float32),
    },
    steps=Transitions(state=numbers(2), action=action, next_state=numbers(2), reward=numbers()),
  )


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  pytest.importorskip("tensorflow_datasets")
  folder = tmp_path_factory.mktemp("histories")
  splits = {"train": histories(13), "heldout": histories(2, learners=5, seed=1)}
  return stored.write(str(folder), splits)


def test_every_split_comes_back_equal_to_the_bit_and_needs_no_tensorflow(path):
  assert_same(stored.read(path), histories(13))
  assert_same(stored.read(path, "heldout"), histories(2, learners=5, seed=1))
  assert "tensorflow" not in sys.modules
  assert list(pathlib.Path(path).glob("*.array_record-*"))


def test_actions_may_be_vectors(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  one = histories(2, continuous=True)
  assert_same(stored.read(stored.write(str(tmp_path), {"train": one})), one)


def test_bad_input_is_one_clear_line(path, tmp_path):
  with pytest.raises(UserError, match="did you mean 'train'"):
    stored.read(path, "trian")
  with pytest.raises(UserError, match="no prepared tfds data set"):
    stored.read(str(tmp_path))
  with pytest.raises(UserError, match="one shape for all histories"):
    stored.write(str(tmp_path), {"train": histories(2), "heldout": histories(2, steps=8)})
  with pytest.raises(UserError, match="exists; remove it"):
    stored.write(str(pathlib.Path(path).parents[1]), {"train": histories(2)})
  prompts = tfds_source.write(str(tmp_path), {"train": [Problem(0, "a", "a", "b", {})]})
  with pytest.raises(UserError, match="holds no histories"):
    stored.read(prompts)
