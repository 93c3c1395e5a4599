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
    ("gropo", {}, "^method: unknown name 'gropo'; did you mean '(dr_)?grpo'"),
    ("", {}, "unknown name ''; known: .*grpo"),
    ("__init__", {}, "unknown name"),
    ("base", {}, "unknown name"),
    ("os", {}, "unknown name"),
    ("grpo", {"eps_hihg": 1.0}, "^method grpo: unknown name 'eps_hihg'; did you mean 'eps_high'"),
    ("sft", {"lr": 1.0}, "known: aggregate"),
    ("dr_grpo", {}, "give max_tokens, which has no default"),
    ("grpo", {"kl": "k4"}, "kl: unknown name 'k4'; .*known: k1, "),
    ("gspo", {"form": "word"}, "form: .*known: sequence, token"),
    ("reinforce", {"baseline": "mean"}, "baseline: .*known: batch, none"),
    ("grpo", {"scale": "std"}, "scale: unknown name 'std'; known: batch, group, none"),
    ("grpo", {"aggregate": "mean"}, "aggregate: unknown name 'mean'; .*rollout_mean"),
    ("sft", {"aggregate": "mean"}, "aggregate: unknown name 'mean'"),
    ("grpo", {"aggregate": "constant"}, "max_tokens=None: must be the token budget"),
    ("dr_grpo", {"max_tokens": 0}, "max_tokens=0: must be the token budget"),
    (
      "dapo",
      {"max_tokens": 10, "overlong_cache": 11},
      "overlong_cache=11: .* above 0 and at most 10",
    ),
    ("dpo", {"kind": "hinge"}, "kind: unknown name 'hinge'; .*known: ipo, sigmoid"),
  ],
)
def test_bad_input_is_one_line_that_names_the_field_and_the_fix(name, kwargs, message):
  with pytest.raises(UserError, match=message) as error:
    methods.get(name, **kwargs)
  assert "\n" not in str(error.value) and not re.search(r"/\w+/", str(error.value))
