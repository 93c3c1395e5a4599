"""Digits backwards between two tags, `<a> 4 1 7 </a>`; a beginner often closes too early.

Tokens: the digits, "<a>", "</a>", ">". The prompt is `items` digits and ">", all prompts have the
same length. The answer is "<a>", the digits backwards, "</a>" and STOP. Correct: the digits are the
right ones, wherever tags stand or lack among them, and STOP ends them. Reward: 1 - `form` for a
correct answer and `form` for the shape, "<a>", 1 to `items` digits of any kind, "</a>", STOP.
Parts: `format`, whether the answer has that shape; `digits`, how many digits it has.

`habit`: a share `short` of the answers closes after 1 to items - 1 digits, drawn by problem and not
told by the prompt. So wrong answers are shorter than right ones but share both tags with them: a
loss that gives every answer the same weight pushes down the tags of wrong ones by more a token than
it pushes up those of right ones. The net push on the tags is negative, and where `form` is small
nothing else holds them.

Chance: sum over t <= 2 tags of binom(items + t, t) 2^t V^-(items + t + 1). Best: 1. For paper 75.
"""

import math

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
    before = place < count
    digit = before & (written >= _FIRST) & (written < _FIRST + kinds)
    tag = before & ((written == opened) | (written == closed))
    shape = stopped & (count >= 3) & (written[0] == opened)
    shape &= (written[jnp.maximum(count - 1, 0)] == closed) & (jnp.sum(digit) == count - 2)
    shape &= jnp.sum(digit) <= items
    wanted = problem.data["digits"][jnp.clip(jnp.cumsum(digit) - 1, 0, items - 1)]
    correct = stopped & jnp.all(digit | tag | ~before) & jnp.all(~digit | (written == wanted))
    correct &= jnp.sum(digit) == items
    parts = floats(shape, jnp.sum(digit))
    reward = form * parts[0] + (1 - form) * correct.astype(jnp.float32)
    return Verdict(reward=reward, correct=correct, parts=parts)

  def write(problem, count):
    """The first `count` digits between the tags."""
    shown = problem.data["digits"][jnp.clip(place - 1, 0, items - 1)]
    tokens = jnp.where(place == 0, opened, jnp.where(place <= count, shown, 0))
    tokens = jnp.where(place == count + 1, closed, tokens)
    return jnp.where(place == count + 2, STOP, tokens).astype(jnp.int32)

  v = float(kinds + 5)
  ways = (math.comb(items + t, t) * 2**t * v ** -(items + t + 1) for t in range(3))
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
    chance=sum(ways),
    parts=("format", "digits"),
  )
