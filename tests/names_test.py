"""Finding by name and checking ranges: one line with the field, what was given and the fix."""

import re

import numpy as np
import pytest

from grpo_jax import envs, methods, names
from grpo_jax.envs import contextual
from grpo_jax.errors import UserError

KNOWN = ("k1", "k2", "k3")


def message(f, *args, **kwargs) -> str:
  with pytest.raises(UserError) as error:
    f(*args, **kwargs)
  text = str(error.value)
  assert "\n" not in text
  return text


def test_one_of_names_the_field_the_nearest_spelling_and_the_few_that_are_known():
  names.one_of("kl", "k2", KNOWN)
  names.one_of("kl", "k2", dict.fromkeys(KNOWN))
  assert message(names.one_of, "kl", "k22", KNOWN) == (
    "kl: unknown name 'k22'; did you mean 'k2'? known: k1, k2, k3"
  )
  assert message(names.one_of, "kl", "none", KNOWN).endswith("'none'; known: k1, k2, k3")
  many = [f"name{i}" for i in range(30)]
  assert message(names.one_of, "x", "nme7", many) == "x: unknown name 'nme7'; did you mean 'name7'?"


@pytest.mark.parametrize(
  "value, bounds, wanted",
  [
    (0, {"low": 1}, "x=0: must be at least 1"),
    (3, {"low": 1, "high": 2}, "at least 1 and at most 2"),
    (0.0, {"above": 0}, "x=0.0: must be above 0"),
    (1, {"low": 0, "below": 1}, "at least 0 and below 1"),
    ((0.5, 1.5), {"high": 1, "above": 0}, r"x=\(0.5, 1.5\): must be above 0 and at most 1"),
    (None, {"low": 1}, "x=None"),
    (float("nan"), {"low": 1}, "x=nan"),
    ("3", {"low": 1}, "x=3"),
    (-1, {"low": 1, "what": "the budget"}, "x=-1: must be the budget, at least 1"),
  ],
)
def test_between_refuses_what_is_outside_and_says_the_bounds(value, bounds, wanted):
  assert re.search(wanted, message(names.between, "x", value, **bounds))


@pytest.mark.parametrize("value", [1, 2.0, np.int64(2), np.float32(1.5), (1, 2)])
def test_between_takes_every_number_inside_its_bounds_included(value):
  names.between("x", value, 1, 2)
  names.between("x", value, above=0.5, below=2.5)


@pytest.mark.parametrize("get, kind, name, key", [
  (methods.get, "method", "grpo", "eps_low"),
  (envs.get, "world", "chain", "steps"),
  (contextual.get, "family", "bandit", "arms"),
])  # fmt: skip
def test_everything_found_by_name_refuses_in_the_same_words(get, kind, name, key):
  wrong = name[:-1] + "x"
  assert message(get, wrong).startswith(f"{kind}: unknown name {wrong!r}; did you mean ")
  assert message(get, name, **{key + "x": 1}).startswith(
    f"{kind} {name}: unknown name '{key}x'; did you mean {key!r}?"
  )


def test_a_missing_keyword_without_default_is_named():
  assert message(methods.get, "dr_grpo") == (
    "method dr_grpo: give max_tokens, which has no default"
  )
