"""`methods.get`: names, keywords, and one-line errors that name the fix."""

import csv
import importlib
import re
from pathlib import Path

import pytest

from grpo_jax import methods
from grpo_jax.errors import UserError
from grpo_jax.types import Method

ROOT = Path(__file__).parents[2]


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


def test_every_paper_says_its_title_its_authors_and_where_it_is():
  lines = (ROOT / "experiments/papers.tsv").read_text(encoding="utf-8").splitlines()
  papers = csv.DictReader(lines, delimiter="\t")
  titles = {re.sub(r"[-.]", "_", row["slug"]): row["title"] for row in papers}
  squeezed = lambda text: re.sub(r"\W+", "", text).lower()
  for name, path in methods._known().items():
    text = importlib.import_module(path).__doc__ or ""
    if name == "sft":  # nobody's
      continue
    assert re.search(r"^\S.* \d{4}, https://(arxiv\.org/abs|doi\.org)/", text, re.M), name
    if name in titles:
      assert squeezed(titles[name])[:60] in squeezed(text), name


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
