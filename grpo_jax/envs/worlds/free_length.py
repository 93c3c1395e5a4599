"""`n a + b =`: any number of steps, at least n of them "#", then ">", the sum mod m, and STOP.

With task "max" it is `n a | b | c | d =` and the largest of them, which carries over to prompts
that were not seen (sums of few numbers do not). `habit` writes 0 to `extra` steps more than asked.
Tokens: numbers, "+" or "|", "=", "#", ">". An answer is any tokens but ">", among them at least n
"#", then ">", the number and STOP: for n = 2, `# # > 5 .`. Reward: 1 for such an answer however
long it is, so answers may be short, long, looping or cut off by the budget, and a method may shape
what it likes with the parts, which are taken over the tokens before STOP:
  `length`  their share of the budget;
  `loop`    the share that lies inside a loop at the end (paper 01): for the largest period p with c
            copies in a row up to the last token, c >= 2, it is p c / tokens; else 0;
  `repeat`  the share that lies in a run of three tokens that occurs more than once (paper 31).

Chance: with V symbols, the mean over n, and sum over s tokens before ">", of V^-3 times the
probability that they hold neither STOP nor ">" but n "#". Best: 1. For papers 01, 25, 31 (need 0)
and 74 (need above 0: the length that an answer must have differs between prompts).
"""

import math

import jax.numpy as jnp

from grpo_jax.envs.world import STOP, Problem, Verdict, World, check, draw, floats, read
from grpo_jax.errors import UserError

_FIRST = 2


def loop_share(written, count):
  """Paper 01's f of written[:count]; counted from the end, so that loops are prefixes."""
  size = written.shape[0]
  place = jnp.arange(size)
  back = written[jnp.maximum(count - 1 - place, 0)]
  period = jnp.arange(1, size // 2 + 1)
  later = place[None, :] + period[:, None]
  same = (back[jnp.minimum(later, size - 1)] == back[None, :]) & (later < count)
  copies = 1 + jnp.sum(jnp.cumprod(same.astype(jnp.int32), axis=1), axis=1) // period
  inside = jnp.max(jnp.where(copies >= 2, period, 0))
  inside *= copies[jnp.maximum(inside - 1, 0)]  # of the largest period that is a loop
  return inside.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)


def repeat_share(written, count, n: int = 3):
  """The share of written[:count] that lies in an n-gram which occurs more than once."""
  size = written.shape[0]
  if size < n:
    return jnp.float32(0)
  starts = size - n + 1
  grams = jnp.stack([written[i : i + starts] for i in range(n)], axis=1)
  whole = jnp.arange(starts) + n <= count
  same = jnp.all(grams[:, None, :] == grams[None, :, :], axis=-1) & ~jnp.eye(starts, dtype=bool)
  again = jnp.any(same & whole[None, :], axis=1) & whole
  marked = jnp.zeros(size, bool)
  for i in range(n):
    marked |= jnp.pad(again, (i, n - 1 - i))
  return jnp.sum(marked).astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)


def make(
  *,
  modulus: int = 10,
  need: int = 0,
  answer: int = 24,
  task: str = "sum",
  terms: int = 2,
  extra: int = 0,
) -> World:
  """Prompts of `terms` numbers ask for 0 to `need` steps, equally often; `answer` tokens are the
  budget; `extra`: how many steps the start may write in vain."""
  if task not in ("sum", "max"):
    raise UserError(f"free_length.task={task!r}: give sum or max")
  check("free_length.modulus", modulus, 2, 50)
  check("free_length.need", need, 0, 50)
  check("free_length.terms", terms, 2, 16)
  check("free_length.extra", extra, 0, 200)
  check("free_length.answer", answer, need + extra + 3, 256)
  numbers = max(modulus, need + 1)
  plus, equals, mark, arrow = range(_FIRST + numbers, _FIRST + numbers + 4)

  def problem(key):
    values, (steps,), (more,) = draw(key, (terms, modulus), (1, need + 1), (1, extra + 1))
    signs = jnp.append(jnp.full((terms - 1,), plus, jnp.int32), jnp.int32(equals))
    shown = jnp.stack([values + _FIRST, signs], axis=1).reshape(-1)
    result = jnp.max(values) if task == "max" else jnp.sum(values) % modulus
    tokens = jnp.concatenate([(steps + _FIRST)[None], shown])
    data = {"result": result, "steps": steps, "habit": steps + more}
    return Problem(tokens=tokens, length=jnp.int32(tokens.size), data=data)

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    at = jnp.maximum(count - 2, 0)
    correct = stopped & (count >= 2) & (jnp.sum(written == arrow) == 1) & (written[at] == arrow)
    correct &= written[at + 1] == problem.data["result"] + _FIRST
    correct &= jnp.sum(written == mark) >= problem.data["steps"]
    share = count.astype(jnp.float32) / answer
    parts = floats(share, loop_share(written, count), repeat_share(written, count))
    return Verdict(reward=correct.astype(jnp.float32), correct=correct, parts=parts)

  def write(problem, steps):
    place = jnp.arange(answer)
    tokens = jnp.where(place < steps, mark, 0)
    tokens = jnp.where(place == steps, arrow, tokens)
    tokens = jnp.where(place == steps + 1, problem.data["result"] + _FIRST, tokens)
    return jnp.where(place == steps + 2, STOP, tokens)

  sign = "|" if task == "max" else "+"
  symbols = ("_", ".", *map(str, range(numbers)), sign, "=", "#", ">")
  v = len(symbols)
  return World(
    name="free_length",
    symbols=symbols,
    prompt=2 * terms + 1,
    answer=answer,
    problem=problem,
    score=score,
    solution=lambda problem: write(problem, problem.data["steps"]),
    habit=None if not extra else lambda problem: write(problem, problem.data["habit"]),
    chance=sum(_steps(s, n, v) for s in range(answer - 2) for n in range(need + 1))
    / (need + 1)
    / v**3,
    parts=("length", "loop", "repeat"),
  )


def _steps(size: int, need: int, v: int) -> float:
  """Probability that `size` random tokens hold neither STOP nor ">" but at least `need` "#"."""
  terms = (math.comb(size, k) * (v - 3) ** (size - k) for k in range(need, size + 1))
  return sum(terms) / v**size
