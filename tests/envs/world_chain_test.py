import numpy as np
import pytest
import token_worlds as tw


def oracle(world, steps):
  modulus = world.vocab - 6

  def verdict(prompt, written):
    results = [int(prompt[0])]
    for op, value in zip(prompt[1:-1:2], prompt[2:-1:2], strict=True):
      a, b = results[-1], int(value)
      results.append({"+": a + b, "-": a - b, "*": a * b}[op] % modulus)
    assert prompt[-1] == "=" and len(results) == steps + 1
    body, stopped = tw.before_stop(written)
    form = stopped and len(body) >= 2 and body[-2] == "=" and body.count("=") == 1
    form = form and body[-1].isdigit()
    working = body[: body.index("=")] if "=" in body else body
    right = sum(a == str(b) for a, b in zip(working, results[1:-1], strict=False))
    correct = form and int(body[-1]) == results[-1]
    return correct, correct, [correct, right, form]

  return verdict


def test_verdicts_are_those_of_python_arithmetic():
  world = tw.get("chain")
  tw.agree(world, oracle(world, 3))


def test_chance_is_the_share_over_all_answers():
  world = tw.get("chain", steps=1, modulus=2, slack=1)
  check = oracle(world, 1)
  for op in "+-":
    found = tw.exact_chance(world, lambda written, op=op: check(["1", op, "0", "="], written)[1])
    assert found == pytest.approx(world.chance, rel=1e-9)


def test_only_the_allowed_operations_are_asked():
  world = tw.get("chain", steps=1, modulus=2, slack=1, ops="-")
  made, _ = tw.problems(world, tw.ROWS)
  assert np.all(made.tokens[:, 1] == world.symbols.index("-"))
