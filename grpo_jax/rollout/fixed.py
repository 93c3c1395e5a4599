"""The plan `Fixed`: completions that are given, as `Rollouts` and `Batch` in numpy.

A completion ends as the sampler's would: with the stop text of the data if there is one, else with
the model's eos. The end is trained.
"""

# pyright: reportArgumentType=false
# The records are annotated with jax arrays; on the host they hold numpy's.

import dataclasses
from collections.abc import Sequence

import numpy as np

from grpo_jax.data.problem import Problem, text_hash
from grpo_jax.data.prompts import PromptSpec
from grpo_jax.errors import UserError
from grpo_jax.rollout.collect import Collected, Sampling, bucket
from grpo_jax.rollout.pack import pack
from grpo_jax.rollout.plans import Where
from grpo_jax.types import Batch, Fixed, Rollouts

LOOPS = ("offline", "in_context")
SUPPLIES = ()

NEAR = (-10, -3, -2, -1, 1, 2, 3, 10)  # how far off a made-up wrong number is


def check(plan: Fixed, where: Where) -> None:
  del where
  if plan.completions not in (1, 2):
    raise UserError(
      f"plan Fixed(completions={plan.completions}): data gives demonstrations (1) or pairs (2)"
    )


@dataclasses.dataclass(frozen=True)
class Example:
  """A prompt (without the trunk) and its completions as ids; of a pair, the chosen one first."""

  problem: Problem
  prompt: np.ndarray
  completions: tuple[np.ndarray, ...]
  texts: tuple[str, ...]


def examples(
  s: Sampling, problems: Sequence[Problem], spec: PromptSpec, group: int
) -> dict[int, Example]:
  """Problem id -> Example, for all problems, so that a bad row is met before the run.

  group 1, demonstrations: meta["completion"] as it stands, else the answer as the prompt's template
  writes it. group 2, pairs: meta["chosen"] and meta["rejected"], else the answer and a wrong one (a
  number near it; of other answers, that of another problem with the same label). UserError names
  the problem, the field and the fix.
  """
  spare = _answers_by_label(problems)
  made = {}
  for p in problems:
    texts = _given(p, group) or _from_answer(p, spec, group, spare)
    ids = s.tokenizer.encode(p.prompt)
    if not 1 <= len(ids) <= s.max_prompt:
      raise UserError(
        f"sample.max_prompt_tokens={s.max_prompt}: {_where(p)} has a prompt of {len(ids)} tokens; "
        "raise it, mend the prompt, or drop the row"
      )
    completions = tuple(_completion(s, p, ids, text) for text in texts)
    made[p.id] = Example(p, np.asarray(ids[len(s.trunk) :], np.int32), completions, texts)
  return made


def assemble(s: Sampling, chosen: Sequence[Example], live: int | None = None) -> Collected:
  """The batch of these examples in the plain layout; those from `live` on are dead (padding).

  reward is 1 for the first completion and 0 for the other. A pair of equal completions is dead: it
  says nothing. Shapes are those of `collect`.
  """
  n, g = len(chosen), len(chosen[0].completions)
  rows = [c for e in chosen for c in e.completions]
  length = np.asarray([len(c) for c in rows], np.int32)
  tokens = _padded(rows, min(bucket(int(length.max())), s.budget))
  prompt_length = np.asarray([len(e.prompt) for e in chosen], np.int32)
  mask = (np.arange(tokens.shape[1])[None] < length[:, None]).astype(np.float32)
  differ = np.asarray([len({c.tobytes() for c in e.completions}) == g for e in chosen])
  alive = differ & (np.arange(n) < (n if live is None else live))
  first = np.arange(g) == 0
  rollouts = Rollouts(
    prompt=np.asarray([e.problem.id for e in chosen], np.int32),
    reward=np.tile(first.astype(np.float32), (n, 1)),
    alive=np.repeat(alive[:, None], g, axis=1),
    correct=np.tile(first, (n, 1)),
    truncated=np.zeros((n, g), bool),
    length=length.reshape(n, g),
  )
  batch = Batch(
    tokens=tokens,
    mask=mask,
    unit=np.zeros(tokens.shape, np.int32),
    unit_mask=np.ones((n * g, 1), np.float32),
    owner=np.arange(n * g, dtype=np.int32)[:, None],
    prompt_tokens=_padded([e.prompt for e in chosen], bucket(int(prompt_length.max()))),
    prompt_length=prompt_length,
  )
  if s.pack:
    batch = pack(batch, rollouts.length, bucket)
  texts = [list(e.texts) for e in chosen]
  return Collected(rollouts, batch, [e.problem for e in chosen], texts, {}, (), {})


# ---- texts ---------------------------------------------------------------------------------------


def _where(p: Problem) -> str:
  return f"the problem {p.question[:60]!r}"


def _given(p: Problem, group: int) -> tuple[str, ...]:
  names = ("completion",) if group == 1 else ("chosen", "rejected")
  missing = [name for name in names if name not in p.meta]
  if len(missing) == len(names):
    return ()
  if missing:
    raise UserError(f'data: {_where(p)} has no "{missing[0]}"; give every row one')
  for name in names:
    if not p.meta[name].strip():
      raise UserError(f'data: {_where(p)}: field "{name}" is empty; fill it in or drop the row')
  return tuple(p.meta[name] for name in names)


def _from_answer(p: Problem, spec: PromptSpec, group: int, spare: dict) -> tuple[str, ...]:
  if p.answer is None:
    names = '"completion"' if group == 1 else '"chosen" and "rejected"'
    raise UserError(f"data: {_where(p)} has no answer to learn from; give {names}")
  gap = "" if p.prompt[-1:].isspace() else " "
  if spec.style == "few_shot":
    ask = spec.template.partition("{answer}")[0]
    gap = ask[len(ask.rstrip()) :]
  answers = (p.answer,) if group == 1 else (p.answer, _wrong(p, spare))
  return tuple(gap + a for a in answers)


def _answers_by_label(problems: Sequence[Problem]) -> dict[str, list[str]]:
  found: dict[str, dict[str, None]] = {}
  for p in problems:
    if p.answer is not None:
      found.setdefault(str(p.meta.get("source")), {})[p.answer] = None
  return {label: sorted(answers) for label, answers in found.items()}


def _wrong(p: Problem, spare: dict[str, list[str]]) -> str:
  """A wrong answer that depends on the question alone, or on the answers of its label."""
  assert p.answer is not None
  draw = text_hash(p.question, "wrong")
  try:
    return str(int(p.answer) + NEAR[draw % len(NEAR)])
  except ValueError:
    others = [a for a in spare[str(p.meta.get("source"))] if a != p.answer]
  if not others:
    raise UserError(
      f"data: every answer of {p.meta.get('source')!r} is {p.answer!r}: no wrong one can be made; "
      'give "chosen" and "rejected"'
    )
  return others[draw % len(others)]


# ---- ids -----------------------------------------------------------------------------------------


def _completion(s: Sampling, p: Problem, prompt: list[int], text: str) -> np.ndarray:
  """Ids of `text` as a continuation of the prompt's ids, with its end."""
  if s.stop and not text.endswith(s.stop):
    text += s.stop[0]
  ids = s.tokenizer.encode(p.prompt + text)
  if ids[: len(prompt)] == prompt:
    ids = ids[len(prompt) :]
  else:  # a token would lie across the border, which no sampled completion can have
    ids = s.tokenizer.backend.encode(text)
  if not s.stop and ids[-1:] != [s.tokenizer.eos_ids[0]]:
    ids = [*ids, s.tokenizer.eos_ids[0]]
  if len(ids) > s.budget:
    raise UserError(
      f"sample.max_new_tokens={s.budget}: {_where(p)} has a completion of {len(ids)} tokens; raise "
      "it, shorten the completion, or drop the row"
    )
  if early := set(ids[:-1]) & set(s.stop_ids):
    text = s.tokenizer.token_texts[min(early)]
    raise UserError(
      f"sample.stop: {_where(p)} has a completion with {text!r} before its end, where sampling "
      "would stop; change sample.stop or data.prompt, or shorten the completion"
    )
  return np.asarray(ids, np.int32)


def _padded(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
  out = np.zeros((len(rows), width), np.int32)
  for row, ids in zip(out, rows, strict=True):
    row[: len(ids)] = ids
  return out
