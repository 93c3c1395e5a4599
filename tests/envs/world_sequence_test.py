import numpy as np
import pytest
import token_worlds as tw

TASKS = {"copy": list, "reverse": lambda x: x[::-1], "sort": sorted}


def oracle(task):
  def verdict(prompt, written):
    assert prompt[-1] == ">"
    wanted = TASKS[task](prompt[:-1])
    body, stopped = tw.before_stop(written)
    same = sum(a == b for a, b in zip(body, wanted, strict=False))
    correct = stopped and body == wanted
    return correct, correct, [same / len(wanted)]

  return verdict


@pytest.mark.parametrize(
  "kwargs", [{}, {"task": "sort", "shortest": 1}, {"task": "copy", "shortest": 2}], ids=str
)
def test_verdicts_are_those_of_python_lists(kwargs):
  world = tw.get("sequence", **kwargs)
  tw.agree(world, oracle(kwargs.get("task", "reverse")))
  made, _ = tw.problems(world, tw.ROWS)
  assert set(made.length) == set(range(kwargs.get("shortest", 5) + 1, 7))


def test_chance_is_the_share_over_all_answers():
  world = tw.get("sequence", items=3, kinds=2, shortest=2)
  found = []
  for prompt in ("ab>", "aab>"):
    right = lambda written, p=list(prompt): oracle("reverse")(p, written)[1]
    found.append(tw.exact_chance(world, right))
  assert np.mean(found) == pytest.approx(world.chance, rel=1e-9)
