"""Answers are read as people write them, compared exactly, and never evaluated."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.errors import UserError
from grpo_jax.verifiers import math
from grpo_jax.verifiers.item import Item


def judge(completion, answer, **args):
  return math.make(**args)(completion, Item(0, "", "", answer), None)


@pytest.mark.parametrize(
  ("completion", "answer", "right"),
  [
    ("3 + 4 = 7", "7", True),
    ("The answer is 7, not 8", "7", True),
    ("so we get \\boxed{42} apples", "42", True),
    ("\\boxed{1} and then \\boxed{\\frac{3}{4}}", "0.75", True),
    ("\\boxed{\\dfrac{-3}{4}}", "-3/4", True),
    ("-\\frac{1}{2}", "-0.5", True),
    ("\\boxed{12", "12", False),  # cut off
    ("\\boxed{x+1}, where x = 5", "5", False),
    ("work 99\n#### 1,234", "1234", True),
    ("it costs $1,234.50.", "1234.5", True),
    ("it lost -$5", "-5", True),
    ("$-5", "-5", True),
    ("x = \u2212 3", "-3", True),
    ("\u22123", "-3", True),
    ("10-7=3", "3", True),
    ("5-3", "3", True),  # an operator, not a sign
    ("5 and -3", "-3", True),
    ("total: 12\u202f345", "12345", True),
    ("12{,}345", "12345", True),
    ("1,2,3", "3", True),
    ("1, 2, 3", "3", True),
    ("it is 42.", "42", True),
    ("42.0", "42", True),
    ("042", "42", True),
    (".5", "1/2", True),
    ("+7", "7", True),
    ("1e3", "1000", True),
    ("50%", "50", True),
    ("1 3/4", "7/4", False),  # reads as 3/4: a mixed number counts only where it stands alone
    ("\\boxed{1 3/4}", "7/4", True),
    ("<think>9</think><answer>8</answer> 7", "8", True),
    ("<answer>\\boxed{8}</answer>", "8", True),
    ("**7**", "7", True),
    ("1/0", "1", False),
    ("0.3333", "1/3", False),
    ("", "7", False),
    ("no number", "7", False),
    ("70", "7", False),
    ("7.5", "7", False),
    ("-7", "7", False),
    ("\\boxed{x^2 + 1}", "$x^2+1$", True),
    ("\\boxed{\\text{Paris}}", "paris", True),
    ("The answer is Paris.", "Paris", True),
    ("\\boxed{\\left(1, 2\\right)}", "(1,2)", True),
    ("so 18", "Natalia sold 48/2 = 24.\n#### 18", True),
  ],
)
def test_verdict_on_a_written_answer(completion, answer, right):
  assert judge(completion, answer) == float(right)


@pytest.mark.parametrize(
  ("mode", "text", "expected"),
  [
    ("first_line", " 7\n3 + 4 = 8", "7"),
    ("first_line", "\n\n -7 \n8", "-7"),
    ("last_number", "\\boxed{3} 4", "4"),
    ("boxed", "4", None),
    ("hashes", "4", None),
    ("tag", "4", None),
    ("all", " 4 ", "4"),
  ],
)
def test_extraction_modes_read_only_where_they_say(mode, text, expected):
  assert math.extract_answer(text, mode) == expected


@given(
  value=st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6),
  before=st.sampled_from(["", "so 3 * 5 = 15 and then ", "The answer is ", "x = "]),
  form=st.sampled_from(["a/b", "frac", "minus", "boxed"]),
)
@settings(max_examples=150, deadline=None)
def test_any_fraction_is_read_back_exactly(value, before, form):
  a, b = value.numerator, value.denominator
  text = {
    "a/b": f"{a}/{b}",
    "frac": f"{'-' if a < 0 else ''}\\frac{{{abs(a)}}}{{{b}}}",
    "minus": f"{a}/{b}".replace("-", "\u2212"),
    "boxed": f"\\boxed{{{a}/{b}}}",
  }[form]
  assert math.number(math.extract_answer(before + text)) == Fraction(a, b)


@given(
  units=st.integers(-(10**12), 10**12), cents=st.integers(0, 99), form=st.sampled_from([",", "_"])
)
@settings(max_examples=150, deadline=None)
def test_any_decimal_with_thousands_separators_is_read_back_exactly(units, cents, form):
  text = f"{units:,}.{cents:02d}".replace(",", "," if form == "," else "\u202f")
  sign = -1 if units < 0 else 1
  assert math.number(math.extract_answer("it is " + text)) == units + sign * Fraction(cents, 100)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_text_makes_the_scorer_raise(text):
  assert judge(text, "7") in (0.0, 1.0)
  assert judge("7", text) in (0.0, 1.0)
  assert judge("\\boxed{" + text, text) in (0.0, 1.0)


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_different_integers_are_never_equal(a, b):
  assert judge(str(a), str(b)) == float(a == b)


@pytest.mark.parametrize(
  "text",
  ["[" * 10**6, "\\boxed{" * 10**5, "9" * 10**6, "1e999999999", "9**9**9**9", "1," * 10**5,
   "1/" * 10**5, "-" * 10**6, "<answer>" * 10**5, "answer is " * 10**5, "\\frac{1}" * 10**5],
  ids=lambda t: t[:10],
)  # fmt: skip
def test_hostile_text_is_wrong_and_cheap(text):
  start = time.process_time()
  assert judge(text, "7") == 0.0
  assert time.process_time() - start < 0.5


def test_tolerance_is_relative_and_off_by_default():
  assert judge("0.3333", "1/3", tolerance=1e-3) == 1.0
  assert judge("0.33", "1/3", tolerance=1e-3) == 0.0


def test_no_answer_means_does_not_apply_and_unknown_mode_names_the_nearest():
  assert judge("7", None) is None
  with pytest.raises(UserError, match="extract.*boxed"):
    math.make(extract="boxxed")
