import math

import numpy as np
import pytest
import token_worlds as tw


class Oracle:
  def __init__(self, guesses):
    self.guesses = guesses

  def __call__(self, prompt, data):
    play = Oracle(self.guesses)
    zero, top, mark = prompt
    assert (zero, mark) == ("0", "?")
    play.count, play.secret = int(top) + 1, int(data["secret"])
    play.silent = list(data["silent"])
    play.possible = set(range(play.count))
    play.bits, play.force, play.done, play.found = [], None, False, False
    return play

  @property
  def turn(self):
    return len(self.bits)

  def write(self, word):
    if self.force is not None:
      self.force = None
      return
    before = len(self.possible)
    reply = "none"
    if word.isdigit():
      guess = int(word)
      reply = "higher" if self.secret > guess else "lower"
      keep = {"higher": lambda n: n > guess, "lower": lambda n: n < guess}[reply]
      self.found = guess == self.secret
      if self.silent[self.turn]:
        reply, keep = "none", lambda n: n != guess
      self.possible = {guess} if self.found else set(filter(keep, self.possible))
    self.bits.append(math.log(before / len(self.possible)) / math.log(self.count))
    self.done = self.found or word == "." or len(self.bits) == self.guesses
    self.force = None if self.done else reply

  def verdict(self):
    bits = self.bits + [0.0] * (self.guesses - len(self.bits))
    return self.found, self.found, [sum(bits)], bits


@pytest.mark.parametrize("kwargs", [{}, {"numbers": 12, "useless": 0.4}], ids=str)
def test_transcripts_gains_and_verdicts_are_those_of_python_sets(kwargs):
  world = tw.get("hidden_number", **kwargs)
  tw.agree_by_turns(world, Oracle(5))
  made, _ = tw.problems(world, tw.ROWS)
  silent, useless = made.data["silent"], kwargs.get("useless", 0)
  assert abs(np.mean(silent) - useless) <= 4 * np.sqrt(useless * (1 - useless) / silent.size)


def test_gains_of_a_found_number_sum_to_one():
  verdict = tw.cases(tw.get("hidden_number"))[2].verdict
  found = verdict.correct
  np.testing.assert_allclose(np.sum(verdict.turn_reward[found], axis=1), 1, atol=1e-5)
  assert np.all(np.sum(verdict.turn_reward[~found], axis=1) < 1 + 1e-5)


def test_chance_is_the_share_over_all_episodes():
  world = tw.get("hidden_number", numbers=3, guesses=3)
  for secret in range(3):
    play = Oracle(3)(["0", "2", "?"], {"secret": secret, "silent": [False] * 3})
    assert tw.exact_chance_by_turns(world, play) == pytest.approx(world.chance, rel=1e-9)


def reached(count, guesses):
  """How many of `count` numbers the best questions find, by trying every first guess."""
  if count <= 0 or guesses == 0:
    return 0
  return max(
    1 + reached(first, guesses - 1) + reached(count - 1 - first, guesses - 1)
    for first in range(count)
  )


@pytest.mark.parametrize(("numbers", "guesses"), [(5, 2), (7, 3), (10, 3), (3, 1)])
def test_best_is_that_of_the_best_questions(numbers, guesses):
  world = tw.get("hidden_number", numbers=numbers, guesses=guesses)
  assert world.best == pytest.approx(reached(numbers, guesses) / numbers)


@pytest.mark.parametrize("useless", [0.25, 1.0])
def test_halving_reaches_the_best_where_some_answers_say_nothing(useless):
  world = tw.get("hidden_number", numbers=12, guesses=4, useless=useless)
  made, solutions = tw.problems(world, 2 * tw.ROWS)
  reward = tw.play(world, made, solutions).verdict.reward
  spread = np.sqrt(world.best * (1 - world.best) / len(reward))
  assert abs(np.mean(reward) - world.best) < 3 * spread
  assert useless < 1 or world.best == pytest.approx(4 / 12)


def test_halving_reaches_the_best_where_not_all_can_be_found():
  world = tw.get("hidden_number", numbers=3, guesses=1)
  made, solutions = tw.problems(world, tw.ROWS)
  reward = tw.play(world, made, solutions).verdict.reward
  assert abs(np.mean(reward) - 1 / 3) < 4 * np.sqrt(2 / 9 / tw.ROWS)
