import numpy as np
import pytest
import token_worlds as tw

WAYS = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}


class Oracle:
  def __init__(self, size, moves):
    self.size, self.moves = size, moves

  def __call__(self, prompt, data):
    play = Oracle(self.size, self.moves)
    names = [f"c{int(cell)}" for cell in data]
    assert prompt in ([*names, ">"], [names[0], "?", "?", ">"])
    play.at, play.key, play.door = (divmod(int(cell), self.size) for cell in data)
    play.has, play.opened, play.says, play.rewards, play.done = False, False, [], [], False
    return play

  @property
  def turn(self):
    return len(self.rewards)

  @property
  def force(self):
    return self.says[0] if self.says else None

  def write(self, word):
    if self.says:
      self.says.pop(0)
      return
    here, reward = "wall", 0
    to = tuple(a + b for a, b in zip(self.at, WAYS.get(word, (9, 9)), strict=True))
    if all(0 <= a < self.size for a in to):
      self.at, here = to, "nothing"
      if to == self.key and not self.has:
        self.has, here, reward = True, "key", 0.5
      elif to == self.door:
        self.opened, here = self.has, "locked"
        reward = self.has / 2
    self.rewards.append(reward)
    self.done = self.opened or word == "." or len(self.rewards) == self.moves
    if not self.done:
      self.says = [f"c{self.at[0] * self.size + self.at[1]}", here]

  def verdict(self):
    rewards = self.rewards + [0] * (self.moves - len(self.rewards))
    return self.opened, self.opened, [self.has, self.opened], rewards


def test_transcripts_and_verdicts_are_those_of_a_python_grid():
  tw.agree_by_turns(tw.get("key_door"), Oracle(3, 8))


def test_hidden_cells_are_not_in_the_prompt():
  world = tw.get("key_door", size=2, hidden=True)
  made, _ = tw.problems(world, tw.ROWS)
  assert all(tw.prompt(world, made, i)[1:] == ["?", "?", ">"] for i in range(tw.ROWS))


@pytest.mark.parametrize(("size", "moves"), [(2, 4), (3, 8)])
def test_chance_is_that_of_the_markov_chain_of_random_moves(size, moves):
  world = tw.get("key_door", size=size, moves=moves)
  total, count = 0.0, 0
  for key in range(size**2):
    for door in range(size**2):
      if door != key:
        reached = chain(size, key, door, world.vocab, moves)
        starts = [c for c in range(size**2) if c not in (key, door)]
        total, count = total + sum(reached[c] for c in starts), count + len(starts)
  assert world.chance == pytest.approx(total / count, rel=1e-9)


def chain(size, key, door, vocab, moves):
  """The chance to open the door, from each cell without the key, as a power of a matrix."""
  cells = size**2
  over = 2 * cells + 1  # states: cell, cell with the key, open, over
  step = np.zeros((over + 1, over + 1))
  step[-2, -2] = step[-1, -1] = 1
  for has in (0, 1):
    for cell in range(cells):
      for way in WAYS.values():
        row, column = cell // size + way[0], cell % size + way[1]
        to = row * size + column if 0 <= row < size and 0 <= column < size else cell
        state = over - 1 if has and to == door else to + cells * (has or to == key)
        step[cell + cells * has, state] += 1 / vocab
      step[cell + cells * has, -1] += 1 / vocab
      step[cell + cells * has, cell + cells * has] += (vocab - 5) / vocab
  return np.linalg.matrix_power(step, moves)[:cells, -2]


def test_too_few_moves_are_refused():
  with pytest.raises(ValueError, match="moves"):
    tw.get("key_door", moves=7)
