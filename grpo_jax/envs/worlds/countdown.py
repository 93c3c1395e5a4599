"""Make a target from given numbers: a program in postfix form, `3 4 + 2 *`, checked by a stack.

Tokens: digits 0..9 (the numbers are 1..9; digits also write the target in the prompt), "+", "-",
"*", ">". The prompt is the numbers, ">" and the target as two digits. A valid program ends by STOP,
uses every number exactly once and leaves one value. The target is made by a random program with
all its values in 0..99; any program that reaches it is right. Reward: 1 for the target.
Parts: `valid`; `close`, 1 / (1 + |value - target|) of a valid program, else 0.

Chance: V^-2n times the mean number of right programs of a problem, which was counted over all
programs of all problems (_RIGHT; of 4000 problems for 5 numbers; the test repeats it for 2 and 3).
Best: 1. For papers 05, 29, 63.
"""

import jax
import jax.numpy as jnp

from grpo_jax.envs.world import (
  MANY,
  STOP,
  Problem,
  Verdict,
  World,
  check,
  digits,
  draw,
  floats,
  pad,
  read,
)

_FIRST = 2
_PLUS = 12
_TO = 15
_LARGEST = 99
_RIGHT = {2: 1.749, 3: 6.592, 4: 50.73, 5: 767.0}


def _problem(key, count: int):
  numbers, luck, order = draw(key, (count, 9), (3 * (count - 1), MANY), (count, MANY))
  numbers, luck = numbers + 1, luck.reshape(count - 1, 3)
  program, value = [numbers[0] + _FIRST], numbers[0]
  for i in range(1, count):
    values = jnp.stack([value + numbers[i], value - numbers[i], value * numbers[i]])
    op = jnp.argmax(jnp.where((values >= 0) & (values <= _LARGEST), luck[i - 1], -1))
    program += [numbers[i] + _FIRST, op.astype(jnp.int32) + _PLUS]
    value = values[op]
  shown = numbers[jnp.argsort(order)]
  ends = jnp.full((1,), _TO, jnp.int32)
  tokens = jnp.concatenate([shown + _FIRST, ends, digits(value, 2) + _FIRST])
  data = {"numbers": shown, "target": value, "program": jnp.stack(program)}
  return Problem(tokens=tokens, length=jnp.int32(count + 3), data=data)


def _run(numbers, written, count):
  """(value of a program, whether it is valid); the value of an invalid one means nothing."""

  def one(carry, x):
    stack, top, left, ok = carry
    token, on = x
    number, op = token - _FIRST, token - _PLUS
    push = (number >= 1) & (number <= 9)
    a, b = stack[jnp.maximum(top - 2, 0)], stack[jnp.maximum(top - 1, 0)]
    value = jnp.stack([a + b, a - b, a * b])[jnp.clip(op, 0, 2)]
    slot = jnp.clip(number, 0, 9)
    fits = jnp.where(push, left[slot] > 0, (op >= 0) & (op <= 2) & (top >= 2))
    go = on & fits
    place = jnp.where(push, top, jnp.maximum(top - 2, 0))
    stack = jnp.where(go, stack.at[place].set(jnp.where(push, number, value)), stack)
    left = jnp.where(go & push, left.at[slot].add(-1), left)
    return (stack, jnp.where(go, place + 1, top), left, ok & (fits | ~on)), None

  size = written.shape[0]
  have = jnp.sum(numbers[:, None] == jnp.arange(10)[None, :], axis=0, dtype=jnp.int32)
  start = (jnp.zeros(size, jnp.int32), jnp.int32(0), have, jnp.bool_(True))
  (stack, top, left, ok), _ = jax.lax.scan(one, start, (written, jnp.arange(size) < count))
  return stack[0], ok & (top == 1) & jnp.all(left == 0)


def make(*, numbers: int = 3) -> World:
  """`numbers` are given; a program has 2 * numbers - 1 tokens."""
  check("countdown.numbers", numbers, 2, max(_RIGHT))
  size = 2 * numbers

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    value, valid = _run(problem.data["numbers"], written, count)
    valid &= stopped
    off = jnp.where(valid, jnp.abs(value - problem.data["target"]), 0).astype(jnp.float32)
    correct = valid & (off == 0.0)
    parts = floats(valid, jnp.where(valid, 1 / (1 + off), 0.0))
    return Verdict(reward=correct.astype(jnp.float32), correct=correct, parts=parts)

  symbols = ("_", ".", *map(str, range(10)), "+", "-", "*", ">")
  return World(
    name="countdown",
    symbols=symbols,
    prompt=numbers + 3,
    answer=size,
    problem=lambda key: _problem(key, numbers),
    score=score,
    solution=lambda problem: pad(jnp.append(problem.data["program"], jnp.int32(STOP)), size),
    chance=_RIGHT[numbers] * len(symbols) ** -float(size),
    parts=("valid", "close"),
  )
