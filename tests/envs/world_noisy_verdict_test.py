import itertools

import numpy as np
import pytest
import token_worlds as tw


def truth(prompt, written):
  """(whether the answer is right, its class or -1)."""
  body, stopped = tw.before_stop(written)
  if not stopped or len(body) != 2 or not all(word.isdigit() for word in body):
    return False, -1
  x, y = map(int, body)
  return (x + y) % 10 == int(prompt[0]), 10 * x + y


def test_truth_and_class_are_those_of_python_arithmetic():
  world = tw.get("noisy_verdict", slack=1)
  made, _, played = tw.cases(world)
  for i in range(tw.ROWS):
    written = tw.words(world, played.tokens[i][: played.length[i]])
    correct, kind = truth(tw.prompt(world, made, i), written)
    assert played.verdict.correct[i] == correct
    assert list(played.verdict.parts[i]) == [kind >= 0, kind]
    assert kind >= 0 or played.verdict.reward[i] == 0


@pytest.mark.parametrize("flip", [0.1, 0.0, 1.0])
def test_verdicts_are_flipped_as_often_as_asked_and_always_the_same_way(flip):
  world = tw.get("noisy_verdict", slack=1, flip=flip)
  made, _ = tw.problems(world, tw.ROWS)
  pairs = np.asarray(list(itertools.product(range(2, 12), repeat=2)), np.int32)
  rows = np.arange(tw.ROWS) % 5  # 5 problems, all their answers and some twice
  proposals = np.zeros((tw.ROWS, 4), np.int32)
  proposals[:, :2], proposals[:, 2] = pairs[np.arange(tw.ROWS) // 5 % 100], 1
  flips = []
  for first in (0, 100):
    some = tw.pick(made, first + rows)
    verdict = tw.play(world, some, proposals).verdict
    flipped = verdict.reward != verdict.correct
    np.testing.assert_array_equal(flipped[500:], flipped[: tw.ROWS - 500])
    flips.append(flipped[:500])
  share = np.mean(flips)
  assert abs(share - flip) <= 4 * np.sqrt(flip * (1 - flip) / 1000)
  if flip == 0.1:  # problems do not share their flips, nor do answers
    assert (
      len(np.unique(np.stack(flips).reshape(2, 100, 5).swapaxes(1, 2).reshape(10, 100), axis=0))
      == 10
    )
    assert world.best == 0.9


def test_chance_is_the_share_over_all_answers():
  world = tw.get("noisy_verdict", slack=1)
  for wanted in "07":
    found = tw.exact_chance(world, lambda written, s=wanted: truth([s, "="], written)[0])
    assert found == pytest.approx(world.chance, rel=1e-9)
