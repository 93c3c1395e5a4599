import numpy as np
import pytest
import token_worlds as tw


def oracle(prompt, written):
  assert prompt.count("[") == prompt.count("]") == prompt.count(">") == 1 and prompt[-1] == ">"
  wanted = prompt[prompt.index("[") + 1 : prompt.index("]")]
  body, stopped = tw.before_stop(written)
  same = sum(a == b for a, b in zip(body, wanted, strict=False))
  correct = stopped and body == wanted
  return correct, correct, [same / len(wanted)]


def test_verdicts_are_those_of_python_lists():
  tw.agree(tw.get("copy_distractor"), oracle)


def test_chance_is_the_share_over_all_answers():
  world = tw.get("copy_distractor", length=6, span=2, kinds=2)
  for prompt in ("a[ba]>", "[bb]a>"):
    found = tw.exact_chance(world, lambda written, p=list(prompt): oracle(p, written)[1])
    assert found == pytest.approx(world.chance, rel=1e-9)


def test_the_span_may_begin_at_any_place():
  world = tw.get("copy_distractor", length=6, span=2, kinds=2)
  made, _ = tw.problems(world, tw.ROWS)
  starts = np.argmax(made.tokens == world.symbols.index("["), axis=1)
  counts = np.bincount(starts)
  assert len(counts) == 2 and np.all(abs(counts - tw.ROWS / 2) < 4 * np.sqrt(tw.ROWS / 4))


def test_prompts_of_512_tokens():
  assert tw.get("copy_distractor", length=512).prompt == 512
