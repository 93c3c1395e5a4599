import itertools
import math

import numpy as np
import pytest
import token_worlds as tw


class Oracle:
  force = None

  def __init__(self, ranks):
    self.ranks = ranks

  def __call__(self, prompt, data):
    del data
    play = Oracle(self.ranks)
    (first, second, colon, *rest), play.lines = prompt, []
    assert colon == ":" and rest.pop() == ">" and first != second
    items = list(zip(rest[::2], rest[1::2], strict=True))
    play.rel = {item: {first: 2, second: 1}.get(item[0], 0) for item in items}
    assert len(play.rel) == len(items) and 2 in play.rel.values()
    play.written, play.done = [], False
    return play

  @property
  def turn(self):
    return len(self.written) // 2

  def write(self, word):
    self.written.append(word)
    self.done = word == "." or len(self.written) == 2 * self.ranks

  def verdict(self):
    gains, seen = [0] * self.ranks, set()
    for k in range(len(self.written) // 2):
      line = tuple(self.written[2 * k : 2 * k + 2])
      if line in self.rel and line not in seen:
        seen.add(line)
        gains[k] = self.rel[line]
    best = sorted(self.rel.values(), reverse=True)[: self.ranks]
    dcg = lambda gains: sum(g / math.log2(k + 2) for k, g in enumerate(gains))
    correct = gains == best and len(seen) == self.ranks
    return dcg(gains) / dcg(best), correct, [len(seen) / self.ranks], np.divide(gains, 2)


@pytest.mark.parametrize("kwargs", [{}, {"items": 7, "ranks": 3}, {"letters": 3}], ids=str)
def test_verdicts_are_those_of_python_lists(kwargs):
  world = tw.get("ranked_list", **kwargs)
  tw.agree_by_turns(world, Oracle(kwargs.get("ranks", 6)))


@pytest.mark.parametrize(("ranks", "letters"), [(1, 6), (2, 3), (4, 6)])
def test_chance_is_the_share_over_all_lists(ranks, letters):
  world = tw.get("ranked_list", items=4, ranks=ranks, letters=letters)
  found = []
  for others in itertools.product(range(letters), repeat=3):  # letter 0 is asked, then letter 1
    rel = [2, *({0: 2, 1: 1}.get(letter, 0) for letter in others)]
    best = sorted(rel, reverse=True)[:ranks]
    lists = itertools.permutations(range(4), ranks)
    found.append(sum([rel[i] for i in chosen] == best for chosen in lists))
  expected = np.mean(found) * world.vocab ** (-2.0 * ranks)
  assert world.chance == pytest.approx(expected, rel=1e-9)


def test_the_chance_of_one_problem_is_that_of_its_best_lists():
  world = tw.get("ranked_list", items=4, ranks=1)
  play = Oracle(1)(list("ab:a0c1a2b3>"), None)
  assert tw.exact_chance_by_turns(world, play) == pytest.approx(2 / world.vocab**2, rel=1e-9)


def test_letters_of_the_other_items_are_equally_likely():
  made, _ = tw.problems(tw.get("ranked_list"), tw.ROWS)
  counts = [np.mean(np.sum(made.data["rel"] == rel, axis=1)) for rel in (2, 1, 0)]
  expected = [1 + 5 / 6, 5 / 6, 5 * 4 / 6]
  assert np.all(abs(np.subtract(counts, expected)) < 4 * np.sqrt(5 / 4 / tw.ROWS))
