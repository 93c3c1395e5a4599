"""Problems from JSON lines: {"prompt": ..., "answer": ...} and any further fields.

Further fields go to `meta` under their own names, where reward functions find them. Demonstrations
have "completion", preference pairs "chosen" and "rejected", instead of an answer (`needs`).
"""

import json
import math
import pathlib
from collections.abc import Iterator, Sequence

from grpo_jax.data.problem import Problem
from grpo_jax.errors import UserError

TEXTS = ("completion", "chosen", "rejected", "source")


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  try:
    data = path.read_bytes()
  except OSError as e:
    raise UserError(f"data.path: cannot read {str(path)!r}: {e.strerror}") from e
  for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
    try:
      line = raw.decode("utf-8").strip()
    except UnicodeDecodeError as e:
      raise UserError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from e
    if line:
      yield number, line


def _text(value, where: str, field: str) -> str:
  """Numbers are taken as they are written: 7 is "7"."""
  if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
    return json.dumps(value)
  if not isinstance(value, str):
    kind = "null" if value is None else type(value).__name__
    raise UserError(f'{where}: field "{field}" is {kind}; give it as a string')
  return value


def problem_of(
  row: object,
  where: str,
  needs: Sequence[str] = ("answer",),
  prompt_field: str = "prompt",
  answer_field: str = "answer",
) -> Problem:
  """A checked row; `where` (file and line) opens the message of its UserError."""
  if not isinstance(row, dict):
    raise UserError(f"{where}: expected an object {{...}}, got {type(row).__name__}")
  names = {"prompt": prompt_field, "answer": answer_field}
  for need in ("prompt", *needs):
    field = names.get(need, need)
    if field not in row:
      raise UserError(f'{where}: field "{field}" is missing; give every row a "{field}" string')
  prompt = _text(row[prompt_field], where, prompt_field)
  if not prompt.strip():
    raise UserError(f'{where}: field "{prompt_field}" is empty; remove the row or fill it in')
  answer = row.get(answer_field)
  if answer is not None or "answer" in needs:
    answer = _text(answer, where, answer_field)
  if answer is not None and not answer.strip():
    raise UserError(f'{where}: field "{answer_field}" is empty; remove the row or fill it in')
  meta = {k: v for k, v in row.items() if k not in (prompt_field, answer_field)}
  for field in TEXTS:
    if field in meta:
      meta[field] = _text(meta[field], where, field)
  return Problem(-1, prompt, prompt.strip(), answer, meta)


def read(
  path: str,
  needs: Sequence[str] = ("answer",),
  prompt_field: str = "prompt",
  answer_field: str = "answer",
) -> list[Problem]:
  """All rows, blank lines apart. UserError names file, line, field and fix."""
  problems = []
  for number, line in _lines(pathlib.Path(path)):
    where = f"{path}:{number}"
    try:
      row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as e:
      at = (
        f"column {e.colno}: {e.msg}" if isinstance(e, json.JSONDecodeError) else "nested too deep"
      )
      raise UserError(f"{where}: not valid JSON ({at}); write one object a line") from e
    problems.append(problem_of(row, where, needs, prompt_field, answer_field))
  if not problems:
    raise UserError(f"data.path: {path!r} has no rows")
  return problems
