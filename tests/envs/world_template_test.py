import numpy as np
import pytest
import token_worlds as tw


def oracle(form):
  def verdict(prompt, written):
    *digits, end = prompt
    assert end == ">"
    body, stopped = tw.before_stop(written)
    inside = body[1:-1]
    shape = stopped and len(body) >= 3 and body[0] == "<a>" and body[-1] == "</a>"
    shape = shape and all(c.isdigit() for c in inside)
    shape = shape and len(inside) <= len(digits)
    said = [c for c in body if c not in ("<a>", "</a>")]
    right = stopped and said == digits[::-1]
    count = sum(c.isdigit() for c in body)
    return form * shape + (1 - form) * right, right, [shape, count]

  return verdict


@pytest.mark.parametrize("kwargs", [{}, {"items": 3, "form": 0.5}], ids=str)
def test_verdicts_are_those_of_python_lists(kwargs):
  tw.agree(tw.get("template", **kwargs), oracle(kwargs.get("form", 0.2)))


def test_chance_is_the_share_over_all_answers():
  world = tw.get("template", items=2, kinds=2)
  check = oracle(0.2)
  found = tw.exact_chance(world, lambda written: check(["0", "1", ">"], written)[1])
  assert found == pytest.approx(world.chance, rel=1e-9)


def test_the_habit_closes_a_share_of_the_answers_too_early_and_keeps_their_form():
  world = tw.get("template", short=0.3)
  made, solutions = tw.problems(world, tw.ROWS)
  _, habits = tw.compiled(world.imitated)[0](0, np.arange(tw.ROWS))
  played = tw.play(world, made, np.asarray(habits))
  formed, digits = played.verdict.parts.T
  assert np.all(formed == 1) and np.all(digits[~played.verdict.correct] < 4)
  assert abs(np.mean(played.verdict.correct) - 0.7) < 4 * np.sqrt(0.21 / tw.ROWS)
  assert set(digits) == {1, 2, 3, 4}
  for habit, solution, n in zip(np.asarray(habits), solutions, digits.astype(int), strict=True):
    assert tw.words(world, habit[: n + 1]) == tw.words(world, solution[: n + 1])
