"""`methods.get`: names, keywords, and one-line errors that name the fix."""

import re

import pytest

from grpo_jax import methods
from grpo_jax.errors import UserError
from grpo_jax.types import Method


def test_every_listed_name_is_a_module_with_make():
  assert {
    "sft",
    "reinforce",
    "rloo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "ppo",
    "dpo",
  } <= set(methods.names())
  for name in methods.names():
    required = {k: 1 for k, v in methods.defaults(name).items() if v is ...}
    assert isinstance(methods.get(name, **required), Method)


def test_hyphens_stand_for_underscores():
  assert methods.defaults("dr-grpo") == methods.defaults("dr_grpo")


@pytest.mark.parametrize(
  ("name", "kwargs", "message"),
  [
    ("gropo", {}, r"'gropo' is unknown \(did you mean .*'grpo'"),
    ("", {}, r"'' is unknown; there are: .*grpo"),
    ("__init__", {}, "is unknown"),
    ("base", {}, "is unknown"),
    ("os", {}, "is unknown"),
    ("grpo", {"eps_hihg": 1.0}, r"no hyperparameter 'eps_hihg' \(did you mean 'eps_high'"),
    ("sft", {"lr": 1.0}, "it has: aggregate"),
    ("dr_grpo", {}, "needs the hyperparameter 'max_tokens'"),
    ("grpo", {"kl": "k4"}, "kl='k4' is unknown: use one of k1"),
    ("gspo", {"form": "word"}, "use sequence or token"),
    ("reinforce", {"baseline": "mean"}, "use batch or none"),
    ("grpo", {"scale": "std"}, "scale='std' is unknown: use one of group, batch, none"),
    ("grpo", {"aggregate": "mean"}, "aggregate='mean' is unknown: use one of rollout_mean"),
    ("sft", {"aggregate": "mean"}, "aggregate='mean' is unknown"),
    ("grpo", {"aggregate": "constant"}, "max_tokens=None must be the token budget"),
    ("dr_grpo", {"max_tokens": 0}, "max_tokens=0 must be the token budget"),
    (
      "dapo",
      {"max_tokens": 10, "overlong_cache": 11},
      "overlong_cache=11 must be in 1..max_tokens=10",
    ),
    ("dpo", {"kind": "hinge"}, "kind='hinge' is unknown: use one of sigmoid, ipo"),
  ],
)
def test_bad_input_is_one_line_that_names_the_field_and_the_fix(name, kwargs, message):
  with pytest.raises(UserError, match=message) as error:
    methods.get(name, **kwargs)
  assert "\n" not in str(error.value) and not re.search(r"/\w+/", str(error.value))
