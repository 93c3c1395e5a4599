import numpy as np
import pytest
import token_worlds as tw


class Oracle:
  def __init__(self, turns, report, noise):
    self.sizes = turns, report, noise

  def __call__(self, prompt, data):
    play = Oracle(*self.sizes)
    *play.asked, mark = prompt
    assert mark == "?" and play.asked == sorted(set(play.asked))
    symbols = ["_", ".", *"0123456789"]
    symbols += [chr(97 + i) for i in range(len(data["results"]))] + list("[]@=?~^%&")
    play.results = {chr(97 + i): [symbols[t] for t in row] for i, row in enumerate(data["results"])}
    play.turn, play.part, play.says, play.done = 0, "start", [], False
    play.report, play.reports, play.read, play.right = [], 0, set(), False
    play.useful = [0.0] * self.sizes[0]
    return play

  @property
  def force(self):
    return self.says[0] if self.says else None

  def write(self, word):
    turns, report, noise = self.sizes
    if self.says:
      self.says.pop(0)
    elif self.part == "start" and word == "[" and report:
      self.part, self.report = "report", []
    elif self.part == "report" and word == "]":
      self.part, self.reports = "act", self.reports + 1
    elif self.part == "report" and word != "." and len(self.report) < report:
      self.report.append(word)
    elif self.part in ("start", "act") and word == "@" and self.turn < turns - 1:
      self.part = "@"
    elif self.part in ("start", "act") and word == "=":
      self.part = "="
    elif self.part == "@" and word in self.results:
      if word in self.asked and word not in self.read:
        self.useful[self.turn] = 1 / (len(self.asked) + 1)
      self.read.add(word)
      self.says, self.part = list(self.results[word]), "start"
      self.turn += 1
      assert len(self.says) == 1 + noise
    else:
      self.done = True
      total = sum(int(self.results[name][0]) for name in self.asked)
      if self.part == "=" and word == str(total)[-1]:
        self.right, self.useful[self.turn] = True, 1 / (len(self.asked) + 1)

  def verdict(self):
    asked = len(self.read & set(self.asked))
    return self.right, self.right, [asked, self.reports], self.useful


def test_transcripts_and_verdicts_are_those_of_a_python_ledger():
  tw.agree_by_turns(tw.get("ledger"), Oracle(5, 2, 2))


def test_solutions_report_the_sum_so_far():
  world = tw.get("ledger")
  made, solutions = tw.problems(world, tw.ROWS)
  verdict = tw.play(world, made, solutions).verdict
  assert np.all(verdict.parts == [3, 3])
  np.testing.assert_allclose(np.sum(verdict.turn_reward, axis=1), 1, rtol=1e-6)
  said = tw.words(world, solutions[0])
  sums = [int(said[i + 1]) for i, word in enumerate(said) if word == "["]
  told = [int(said[i + 2]) for i, word in enumerate(said) if word == "@"]
  assert sums == [sum(told[: k + 1]) % 10 for k in range(3)]


@pytest.mark.parametrize(("last", "length"), [("[0_]=9", 42), ("[0_]@a", 41)])
def test_the_longest_episode_fills_the_budget_and_turns_are_counted(last, length):
  world = tw.get("ledger")
  made, _ = tw.problems(world, tw.ROWS)
  longest = [world.symbols.index(word) for word in 4 * "[[a]@a___" + last]
  assert np.all(tw.play(world, made, np.asarray([longest] * tw.ROWS, np.int32)).length == length)


def test_chance_is_the_share_over_all_episodes():
  world = tw.get("ledger", facts=1, asked=1, turns=2, report=1, noise=0)
  play = Oracle(2, 1, 0)(["a", "?"], {"results": [[7]]})
  assert tw.exact_chance_by_turns(world, play) == pytest.approx(world.chance, rel=1e-9)
