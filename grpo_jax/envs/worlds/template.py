"""Digits backwards between two tags, `<a> 4 1 7 </a>`; a beginner often closes too early.

Tokens: the digits, "<a>", "</a>", ">". The prompt is `items` digits and ">", all prompts have the
same length. The answer is "<a>", the digits backwards, "</a>" and STOP. Reward: `form` for an
answer of that shape with 1 to `items` digits whatever they are, 1 - `form` more for the right ones.
Correct: the right ones. Parts: `format`, whether the answer has that shape; `digits`, their number
then.

`habit`: a share `short` of the answers closes after 1 to items - 1 digits, drawn by problem and not
told by the prompt. So wrong answers are shorter than right ones but share both tags with them: a
loss that gives every answer the same weight pushes down the tags of wrong ones by more a token than
it pushes up those of right ones, and the net push on the tags is negative.

Chance: V^-(items+3). Best: 1. For paper 75.
"""

import jax.numpy as jnp

from grpo_jax.envs.world import STOP, Problem, Verdict, World, check, draw, floats, read

_FIRST = 2
_LUCK = 2**24  # float32 holds these


def make(*, items: int = 4, kinds: int = 10, form: float = 0.2, short: float = 0.5) -> World:
  """`form`: the reward's share for the shape; `short`: the habit's share of answers cut short."""
  check("template.items", items, 2, 32)
  check("template.kinds", kinds, 2, 10)
  check("template.form", form, 0, 1)
  check("template.short", short, 0, 1)
  opened, closed, end = range(_FIRST + kinds, _FIRST + kinds + 3)
  size = items + 3
  place = jnp.arange(size)

  def problem(key):
    shown, (luck,), (cut,) = draw(key, (items, kinds), (1, _LUCK), (1, items - 1))
    hasty = luck.astype(jnp.float32) < short * _LUCK
    tokens = jnp.append(shown + _FIRST, jnp.int32(end))
    data = {"digits": shown[::-1] + _FIRST, "habit": jnp.where(hasty, cut + 1, items)}
    return Problem(tokens=tokens, length=jnp.int32(items + 1), data=data)

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    digits = (place >= 1) & (place < count - 1)
    inside = (written >= _FIRST) & (written < _FIRST + kinds)
    shape = stopped & (count >= 3) & (written[0] == opened)
    shape &= (written[jnp.maximum(count - 1, 0)] == closed) & jnp.all(inside | ~digits)
    same = jnp.all(written[1 : items + 1] == problem.data["digits"])
    correct = shape & (count == items + 2) & same
    parts = floats(shape, jnp.where(shape, count - 2, 0))
    reward = form * parts[0] + (1 - form) * correct.astype(jnp.float32)
    return Verdict(reward=reward, correct=correct, parts=parts)

  def write(problem, count):
    """The first `count` digits between the tags."""
    shown = problem.data["digits"][jnp.clip(place - 1, 0, items - 1)]
    tokens = jnp.where(place == 0, opened, jnp.where(place <= count, shown, 0))
    tokens = jnp.where(place == count + 1, closed, tokens)
    return jnp.where(place == count + 2, STOP, tokens).astype(jnp.int32)

  symbols = ("_", ".", *map(str, range(kinds)), "<a>", "</a>", ">")
  return World(
    name="template",
    symbols=symbols,
    prompt=items + 1,
    answer=size,
    problem=problem,
    score=score,
    solution=lambda problem: write(problem, jnp.int32(items)),
    habit=lambda problem: write(problem, problem.data["habit"]),
    chance=len(symbols) ** -float(size),
    parts=("format", "digits"),
  )
