import itertools

import numpy as np
import pytest
import token_worlds as tw


def links(prompt):
  *pairs, arrow, first = prompt
  assert arrow == ">" and first.islower()
  return {a.lower(): b for a, b in zip(pairs[::2], pairs[1::2], strict=True)}, first


def oracle(hops):
  def verdict(prompt, written):
    follows, first = links(prompt)
    ends = [first]
    for _ in range(hops):
      ends.append(follows[ends[-1]])
    body, stopped = tw.before_stop(written)
    said = [first, *(body + ["?"] * 2 * hops)[1 : 2 * hops : 2]]
    right = [follows.get(a) == b for a, b in itertools.pairwise(said)]
    correct = stopped and len(body) == 2 * hops and body[-1] == ends[-1]
    until = right.index(False) if False in right else hops
    return correct, correct, [sum(right) / hops, until / hops]

  return verdict


@pytest.mark.parametrize("kwargs", [{}, {"keys": 4, "hops": 2}], ids=str)
def test_verdicts_are_those_of_a_python_dictionary(kwargs):
  world = tw.get("hops", **kwargs)
  tw.agree(world, oracle(kwargs.get("hops", 3)))


def test_chance_is_the_share_over_all_answers():
  world = tw.get("hops", keys=3, hops=1)
  check = oracle(1)
  found = tw.exact_chance(world, lambda written: check(list("AbBcCa>b"), written)[1])
  assert found == pytest.approx(world.chance, rel=1e-9)


def test_links_are_one_circle_and_one_wrong_hop_never_leads_to_the_right_end():
  world = tw.get("hops", keys=5, hops=3)
  made, _ = tw.problems(world, tw.ROWS)
  for i in range(32):
    follows, first = links(tw.prompt(world, made, i))
    seen = [first]
    while follows[seen[-1]] != first:
      seen.append(follows[seen[-1]])
    assert len(seen) == 5
    end = lambda x, follows=follows: follows[follows[x]]
    assert all(end(x) != end(follows[first]) for x in "abcde" if x != follows[first])
  assert len({tuple(t) for t in made.tokens}) > tw.ROWS * 0.9
  assert np.all(np.sort(made.tokens[:, :10:2]) == np.arange(2, 7))
