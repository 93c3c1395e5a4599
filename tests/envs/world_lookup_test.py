import numpy as np
import pytest
import token_worlds as tw


class Oracle:
  def __init__(self, hops, calls):
    self.hops, self.calls = hops, calls

  def __call__(self, prompt, data):
    play = Oracle(self.hops, self.calls)
    letters = [chr(97 + i) for i in range(len(data["table"]))]
    play.table = {a: letters[b] for a, b in zip(letters, data["table"], strict=True)}
    assert prompt[1] == "?"
    play.path = [prompt[0]]
    for _ in range(self.hops):
      play.path.append(play.table[play.path[-1]])
    play.turn, play.last, play.force, play.done, play.right = 0, None, None, False, False
    play.links, play.useful = 0, [0.0] * (self.calls + 1)
    return play

  def write(self, word):
    if self.force is not None:
      self.force = None
    elif self.last is None and word in ("@", "=") and (word == "=" or self.turn < self.calls):
      self.last = word
    elif self.last == "@" and word in self.table:
      if self.links < self.hops and word == self.path[self.links]:
        self.links += 1
        self.useful[self.turn] = 1 / (self.hops + 1)
      self.turn, self.last, self.force = self.turn + 1, None, self.table[word]
    else:
      self.done = True
      if self.last == "=" and word == self.path[-1]:
        self.right, self.useful[self.turn] = True, 1 / (self.hops + 1)

  def verdict(self):
    return self.right, self.right, [self.turn, self.links], self.useful


def test_transcripts_and_verdicts_are_those_of_a_python_table():
  tw.agree_by_turns(tw.get("lookup"), Oracle(2, 3))


def test_the_best_episode_earns_one_over_its_turns():
  world = tw.get("lookup")
  made, solutions = tw.problems(world, tw.ROWS)
  useful = tw.play(world, made, solutions).verdict.turn_reward
  np.testing.assert_allclose(useful, np.broadcast_to([1 / 3, 1 / 3, 1 / 3, 0], useful.shape))


@pytest.mark.parametrize(("written", "length"), [("@a_@b_@b_=a", 11), ("@a_@b_@b_@a", 10)])
def test_the_longest_episode_fills_the_budget_and_calls_are_counted(written, length):
  world = tw.get("lookup")
  made, _ = tw.problems(world, tw.ROWS)
  longest = [world.symbols.index(word) for word in written]
  assert np.all(tw.play(world, made, np.asarray([longest] * tw.ROWS, np.int32)).length == length)


def test_chance_is_the_share_over_all_episodes():
  world = tw.get("lookup", keys=2, hops=1, calls=2)
  for table in ([0, 0], [1, 0]):
    play = Oracle(1, 2)(["a", "?"], {"table": table})
    assert tw.exact_chance_by_turns(world, play) == pytest.approx(world.chance, rel=1e-9)


def test_fewer_calls_than_hops_are_refused():
  with pytest.raises(ValueError, match="calls"):
    tw.get("lookup", hops=3, calls=2)
