"""Find a coloured box in a small image that is written as tokens; answer a point or the box.

Tokens: the coordinates 0..size-1, `colours` colours A.., "?". The prompt is the image row by row
(size^2 colours), the target colour and "?". One rectangle has the target colour, all other cells
have others at random. Coordinates count from the left (x) and from the top (y).
  task "point": the answer is x y, or up to `points` candidates x y x y .., then STOP. Reward: 1 if
    the first point lies in the box. Parts: `hit`, the reward; `any`, some point lies in it; `rank`,
    that of the first that does, 0 if none; `count` of candidates; `format`. Paper 13's reward is
    1/sqrt(count rank) or -1/count, from these.
  task "box": the answer is x1 y1 x2 y2, both corners inside, then STOP. Reward: IoU with the box in
    cells, 0 unless x1 <= x2 and y1 <= y2. Correct: the box itself. Parts: `hit`, IoU of 1/2 and
    more; `iou`; `format` (papers 15, 20).

Chance: V^-5 for a box; for points E[area] V^-3 sum over c < points of (size/V)^2c, with
E[area] = ((largest + 1) / 2)^2. Best: 1.
"""

import string

import jax.numpy as jnp

from grpo_jax.envs.world import MANY, STOP, Problem, Verdict, World, check, draw, floats, pad, read
from grpo_jax.names import one_of

_FIRST = 2


def _problem(key, size: int, colours: int, largest: int):
  sides, corner, (target,), others = draw(
    key, (2, largest), (2, MANY), (1, colours), (size**2, colours - 1)
  )
  width, height = sides + 1
  x, y = corner % (size - sides)
  others = others.reshape(size, size)
  others += (others >= target).astype(jnp.int32)
  at = jnp.arange(size)
  row, column = (at >= y) & (at < y + height), (at >= x) & (at < x + width)
  cells = jnp.where(row[:, None] & column[None, :], target, others) + _FIRST + size
  question = jnp.stack([target + _FIRST + size, jnp.int32(_FIRST + size + colours)])
  tokens = jnp.concatenate([cells.reshape(-1), question])
  box = jnp.stack([x, y, x + width - 1, y + height - 1])
  return Problem(tokens=tokens, length=jnp.int32(tokens.size), data=box)


def _numbers(tokens, length, size: int):
  """(numbers of the answer, how many, whether it is only numbers, ended by STOP)."""
  written, count, stopped = read(tokens, length)
  numbers = written - _FIRST
  fits = (numbers >= 0) & (numbers < size)
  return numbers, count, stopped & (jnp.sum(fits) == count)


def _points(problem, tokens, length, size: int, points: int):
  numbers, count, form = _numbers(tokens, length, size)
  form &= (count >= 2) & (count % 2 == 0)
  x, y = numbers[: 2 * points : 2], numbers[1 : 2 * points : 2]
  x1, y1, x2, y2 = problem.data
  inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
  inside &= form & (2 * jnp.arange(points) < count)
  found = jnp.any(inside)
  rank = jnp.where(found, jnp.argmax(inside) + 1, 0)
  number = jnp.where(form, count // 2, 0)
  parts = floats(inside[0], found, rank, number, form)
  return Verdict(reward=parts[0], correct=inside[0], parts=parts)


def _box(problem, tokens, length, size: int):
  numbers, count, form = _numbers(tokens, length, size)
  box, true = numbers[:4], problem.data
  form &= (count == 4) & jnp.all(box[:2] <= box[2:])
  sides = lambda low, high: jnp.prod(jnp.maximum(high - low + 1, 0))
  both = sides(jnp.maximum(box[:2], true[:2]), jnp.minimum(box[2:], true[2:]))
  union = sides(box[:2], box[2:]) + sides(true[:2], true[2:]) - both
  iou = jnp.where(form, both.astype(jnp.float32) / jnp.maximum(union, 1).astype(jnp.float32), 0.0)
  hit = form & (2 * both >= union)
  parts = floats(hit, iou, form)
  return Verdict(reward=iou, correct=form & jnp.all(box == true), parts=parts)


def make(
  *, task: str = "point", size: int = 5, colours: int = 6, largest: int = 2, points: int = 1
) -> World:
  """Boxes have sides of 1 to `largest` in an image of `size` x `size` cells."""
  one_of("grounding.task", task, ("point", "box"))
  check("grounding.size", size, 2, 20)
  check("grounding.colours", colours, 2, 26)
  check("grounding.largest", largest, 1, size)
  check("grounding.points", points, 1, 8)
  symbols = ("_", ".", *map(str, range(size)), *string.ascii_uppercase[:colours], "?")
  v = float(len(symbols))
  if task == "point":
    chance = ((largest + 1) / 2) ** 2 * sum((size / v) ** (2 * c) for c in range(points)) / v**3
    answer, parts = 2 * points + 1, ("hit", "any", "rank", "count", "format")
    score = lambda problem, state, tokens, length: _points(problem, tokens, length, size, points)
  else:
    chance, answer, parts = v**-5, 5, ("hit", "iou", "format")
    score = lambda problem, state, tokens, length: _box(problem, tokens, length, size)

  def solution(problem):
    found = problem.data[: 2 if task == "point" else 4] + _FIRST
    return pad(jnp.append(found, jnp.int32(STOP)), answer)

  return World(
    name="grounding",
    symbols=symbols,
    prompt=size**2 + 2,
    answer=answer,
    problem=lambda key: _problem(key, size, colours, largest),
    score=score,
    solution=solution,
    chance=chance,
    parts=parts,
  )
