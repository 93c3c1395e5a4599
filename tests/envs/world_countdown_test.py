import collections
import functools
import itertools

import numpy as np
import pytest
import token_worlds as tw

from grpo_jax.envs.worlds import countdown

OPS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def run(body, numbers):
  """The value of a program; None where it is not valid."""
  stack, left = [], list(numbers)
  for word in body:
    if word in left:
      left.remove(word)
      stack.append(int(word))
    elif word in OPS and len(stack) >= 2:
      b, a = stack.pop(), stack.pop()
      stack.append(OPS[word](a, b))
    else:
      return None
  return stack[0] if len(stack) == 1 and not left else None


def oracle(prompt, written):
  numbers, target = prompt[: prompt.index(">")], int("".join(prompt[-2:]))
  body, stopped = tw.before_stop(written)
  value = run(body, numbers) if stopped else None
  close = 0.0 if value is None else 1 / (1 + abs(value - target))
  return value == target, value == target, [value is not None, close]


def test_verdicts_are_those_of_a_python_stack():
  world = tw.get("countdown")
  tw.agree(world, oracle)
  made, solutions = tw.problems(world, tw.ROWS)
  shuffled = np.random.default_rng(0).permuted(solutions[:, :5], axis=1)
  played = tw.play(world, made, np.append(shuffled, solutions[:, 5:], axis=1))
  tw.compare(world, oracle, made, played)
  close = played.verdict.parts[:, 1]
  assert np.sum((close > 0) & (close < 1)) > 20  # valid programs with another value


@functools.cache
def programs(numbers):
  """How many programs of these numbers there are for every value."""
  if len(numbers) == 1:
    return collections.Counter({numbers[0]: 1})
  found = collections.Counter()
  places = range(len(numbers))
  cuts = {
    (tuple(numbers[i] for i in left), tuple(numbers[i] for i in places if i not in left))
    for size in places[1:]
    for left in itertools.combinations(places, size)
  }
  for left, right in cuts:
    for (a, m), (b, n) in itertools.product(programs(left).items(), programs(right).items()):
      for op in OPS.values():
        found[op(a, b)] += m * n
  return found


def targets(numbers, value):
  """(target, its probability) of the random program that takes the numbers in this order."""
  if not numbers:
    return [(value, 1.0)]
  allowed = [v for v in (op(value, numbers[0]) for op in OPS.values()) if 0 <= v <= 99]
  return [(target, p / len(allowed)) for v in allowed for target, p in targets(numbers[1:], v)]


def mean_right(count):
  total = 0.0
  for numbers in itertools.product(range(1, 10), repeat=count):
    right = programs(tuple(sorted(numbers)))
    total += sum(p * right[target] for target, p in targets(numbers[1:], numbers[0]))
  return total / 9**count


@pytest.mark.parametrize("count", [2, 3])
def test_the_mean_number_of_right_programs_is_counted(count):
  assert countdown._RIGHT[count] == pytest.approx(mean_right(count), rel=1e-3)


def test_chance_is_the_share_over_all_answers():
  world, mean = tw.get("countdown", numbers=2), 0.0
  for a, b in itertools.product(range(1, 10), repeat=2):
    words = [str(a), str(b), *OPS]  # no other word is in a valid program
    bodies = set(itertools.product(words, repeat=3))
    for target, p in targets((b,), a):
      prompt = [str(a), str(b), ">", *f"{target:02d}"]
      mean += p * sum(oracle(prompt, [*body, "."])[1] for body in bodies) / 81
  assert world.chance == pytest.approx(mean * world.vocab**-4, rel=1e-3)


def test_random_programs_use_every_operation_equally_where_all_are_allowed():
  world = tw.get("countdown")
  _, solutions = tw.problems(world, tw.ROWS)
  said = [tw.words(world, row) for row in solutions]
  free = [row[2] for row in said if int(row[0]) >= int(row[1])]
  shares = np.asarray([free.count(op) for op in OPS]) / len(free)
  assert np.all(abs(shares - 1 / 3) < 4 * np.sqrt(2 / 9 / len(free)))
