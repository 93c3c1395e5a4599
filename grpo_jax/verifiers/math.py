"""1 if the completion's answer equals the problem's as a number, else 0. Never eval().

Numbers are compared as exact fractions: 1,234.50 = 1234.5, 3/4 = \\frac{3}{4} = 0.75, 50% = 50.
Answers that are no numbers are compared as text, LaTeX dressing and spaces apart.
"""

import re
from fractions import Fraction

from grpo_jax.names import between, one_of
from grpo_jax.verifiers.item import Item, first_line, tagged

EXTRACT = ("auto", "first_line", "last_number", "boxed", "hashes", "tag", "all")
_SCAN = 20_000  # an answer stands at the end: what is before its last characters is not read
_DIGITS = 400  # longer numbers are refused: 1e999999999 must not be expanded

_MINUS = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"))
_SPACES = "\u00a0\u2009\u202f"
_GROUPED = rf"\d{{1,3}}(?:(?:,|[{_SPACES}])\d{{3}})+(?!\d)"
_DECIMAL = rf"(?:(?:{_GROUPED}|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
_LATEX_FRACTION = r"\\[dt]?frac\s*\{\s*[+-]?\d+\s*\}\s*\{\s*[+-]?\d+\s*\}"
# A sign right after a digit, letter or bracket is an operator: 5-3 holds 5 and 3.
_SIGN = r"(?:(?<![\w.)\]}])[+-])?"
_NUMBER = re.compile(rf"{_SIGN}(?:{_LATEX_FRACTION}|{_DECIMAL}(?:\s?/\s?\d+(?![\d.]))?)")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\s*\{\s*([+-]?\d+)\s*\}\s*\{\s*([+-]?\d+)\s*\}")
_MIXED = re.compile(r"([+-]?)(\d+)\s+(\d+)\s*/\s*(\d+)")
_LOOSE_SIGN = re.compile(r"(^|[=:(])(\s*)([+-])\s+(?=[\d.])")
_MONEY = re.compile(r"([+-]?)\\?[$€£]\s*([+-]?)(?=[\d.])")
_DRESSING = re.compile(
  r"\\(?:left|right|displaystyle|,|;|!|\s)|\\(?:text|mathrm|mbox)(?=\{)|\\?[$%]"
)
_SAID = re.compile(r"(?:answer\s*(?:is|:|=))\s*:?", re.IGNORECASE)


def _plain(text: str) -> str:
  text = text.translate(_MINUS).replace("\u2044", "/").replace("{,}", ",").replace("\\,", "\u2009")
  text = _MONEY.sub(lambda m: m[1] + m[2], text)
  return _LOOSE_SIGN.sub(r"\1\2\3", text)


def _ratio(top: str, bottom: str) -> Fraction | None:
  return None if int(bottom) == 0 else Fraction(int(top), int(bottom))


def number(text: str) -> Fraction | None:
  """The number that the whole text is, or None; a \\boxed{} or $...$ around it is taken off."""
  text = _plain(text).strip().strip("*").strip()
  text = text.removesuffix(".").rstrip("%").rstrip("\\").strip("$ ")
  text = text.removeprefix("(").removesuffix(")") if text.startswith("(") else text
  if len(text) > _DIGITS or not re.search(r"\d", text):
    return None
  if m := _FRACTION.fullmatch(text):
    value = _ratio(m[2], m[3])
    return -value if value is not None and m[1] == "-" else value
  if m := _MIXED.fullmatch(text):
    part = _ratio(m[3], m[4])
    return None if part is None else (-1 if m[1] == "-" else 1) * (int(m[2]) + part)
  top, slash, bottom = text.partition("/")
  value = _decimal(top.strip())
  if value is None or not slash:
    return value
  below = _decimal(bottom.strip())
  return None if not below else value / below


def _decimal(text: str) -> Fraction | None:
  if not re.fullmatch(rf"[+-]?{_DECIMAL}", text):
    return None
  mantissa, _, exponent = text.lower().partition("e")
  if exponent and (len(exponent) > 4 or abs(int(exponent)) > _DIGITS):
    return None
  return Fraction(re.sub(rf"[,{_SPACES}]", "", mantissa)) * Fraction(10) ** int(exponent or 0)


def boxed(text: str) -> str | None:
  """What the last \\boxed{} holds, braces balanced; None if there is none or it is cut off."""
  start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
  if start < 0:
    return None
  start = depth_at = text.index("{", start) + 1
  depth = 1
  for i in range(depth_at, len(text)):
    depth += {"{": 1, "}": -1}.get(text[i], 0)
    if depth == 0:
      return text[start:i].strip()
  return None


def last_number(text: str) -> str | None:
  found = _NUMBER.findall(_plain(text))
  return found[-1] if found else None


def _marked(text: str, mode: str) -> str | None:
  """The answer where a mark says that it is: tag, box, hashes."""
  if mode in ("auto", "tag") and (found := tagged(text)) is not None:
    inner = boxed(found)
    return found if inner is None else inner
  if mode in ("auto", "boxed") and ("\\boxed{" in text or "\\fbox{" in text):
    return boxed(text) or ""
  if mode in ("auto", "hashes") and "####" in text:
    return first_line(text.rpartition("####")[2])
  return None


def extract_answer(text: str, mode: str = "auto", numeric: bool = True) -> str | None:
  """The answer that a text gives, or None.

  auto: <answer> tag, else \\boxed{}, else after ####, else after "answer is", else the last number
  (the last line where `numeric` is false). Only the last 20,000 characters are read.
  """
  if mode == "first_line":
    line = first_line(text[:_SCAN])
    return (line if number(line) is not None else last_number(line)) if numeric else line
  text = text[-_SCAN:]
  if mode == "all":
    return text.strip()
  marked = _marked(text, mode)
  if marked is not None:
    return marked if not numeric or number(marked) is not None else last_number(marked) or marked
  if mode not in ("auto", "last_number"):
    return None
  if mode == "auto" and (said := list(_SAID.finditer(text))):
    rest = first_line(text[said[-1].end() :])
    if not numeric:
      return rest
    if found := _NUMBER.search(_plain(rest)):
      return found[0]
  if numeric:
    return last_number(text)
  lines = [line for line in text.splitlines() if line.strip()]
  return lines[-1].strip() if lines else None


def _bare(text: str) -> str:
  text = _DRESSING.sub("", _plain(text)).replace("dfrac", "frac").replace("tfrac", "frac")
  return re.sub(r"[\s{}]+", "", text).removesuffix(".").casefold()


def equal(a: str, b: str, tolerance: float = 0.0) -> bool:
  """As numbers where both are, within tolerance * |b|; else as text."""
  x, y = number(a), number(b)
  if x is None or y is None:
    return x is None and y is None and _bare(a) == _bare(b)
  return x == y or abs(x - y) <= Fraction(tolerance) * abs(y)


def make(extract: str = "auto", tolerance: float = 0.0):
  """`extract`: see `extract_answer`. `tolerance`: relative; 0 asks for the exact value.

  None (does not apply) for problems without an answer.
  """
  one_of("reward.parts.args.extract", extract, EXTRACT)
  between("reward.parts.args.tolerance", tolerance, 0, below=1)

  def score(completion: str, item: Item, tokens: int | None) -> float | None:
    del tokens
    if item.answer is None:
      return None
    truth = _marked(item.answer, "auto") or item.answer.strip()
    numeric = number(truth) is not None
    given = extract_answer(completion, extract, numeric)
    return float(given is not None and equal(given, truth, tolerance))

  return score
