import numpy as np
import pytest
import token_worlds as tw

FAMILIES = "EHX"


def oracle(world, depth):
  kinds = world.vocab - 7

  def verdict(prompt, written, label):
    family, letters = prompt[0], prompt[1 : depth + 1]
    wanted = {
      "E": letters[:1],
      "H": [chr((ord(c) - 97 + 1) % kinds + 97) for c in reversed(letters)],
      "X": label,
    }[family]
    body, stopped = tw.before_stop(written)
    styled = body[:1] == ["~"]
    correct = stopped and body[styled:] == wanted
    return correct, correct, [*(correct and f == family for f in FAMILIES), styled]

  return verdict


def test_verdicts_are_those_of_python_lists():
  world = tw.get("gated", depth=4)
  made, _ = tw.problems(world, tw.ROWS)
  hopeless = [tuple(p) for p, f in zip(made.tokens, made.data["family"], strict=True) if f == 2]
  assert len(set(hopeless)) > 0.9 * len(hopeless)
  made, _, played = tw.cases(world)
  verdict, labels = oracle(world, 4), iter(made.data["answer"])
  with_label = lambda prompt, written: verdict(prompt, written, tw.words(world, next(labels)))
  tw.compare(world, with_label, made, played)


def test_families_come_in_their_shares_and_prompts_name_them():
  world = tw.get("gated", depth=4)
  made, _ = tw.problems(world, tw.ROWS)
  shown = [world.symbols[t] for t in made.tokens[:, 0]]
  assert shown == [FAMILIES[f] for f in made.data["family"]]
  for family, share in zip(FAMILIES, (0.4, 0.4, 0.2), strict=True):
    found = shown.count(family) / tw.ROWS
    assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / tw.ROWS)


def test_best_is_the_mean_over_all_labels_that_a_hopeless_prompt_may_have():
  world = tw.get("gated", depth=1, kinds=2, hard=0.25, hopeless=0.5)
  assert world.best == pytest.approx(0.25 + 0.25 + 0.5 / 2)
  made, _ = tw.problems(world, tw.ROWS)
  hopeless = made.data["family"] == 2
  for letter in range(2):  # the label does not follow from the prompt
    rows = hopeless & (made.tokens[:, 1] == 2 + letter)
    share = np.mean(made.data["answer"][rows, 0] == 2)
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(np.sum(rows))


def test_chance_is_the_share_over_all_answers():
  world = tw.get("gated", depth=2, kinds=2, hard=0.25, hopeless=0.5)
  verdict, total = oracle(world, 2), 0.0
  for prompt, share in (("Eab>", 0.25), ("Hab>", 0.25), ("Xab>", 0.5)):
    right = lambda written, p=list(prompt): verdict(p, written, ["b", "b"])[1]
    total += share * tw.exact_chance(world, right)
  assert total == pytest.approx(world.chance, rel=1e-9)


@pytest.mark.parametrize("shown", [0.0, 0.3])
def test_the_start_is_plain_and_solves_the_hard_prompts_it_is_shown(shown):
  world = tw.get("gated", shown=shown)
  made, solutions = tw.problems(world, tw.ROWS)
  assert np.all(solutions[:, 0] == world.symbols.index("~"))
  _, habits = tw.compiled(world.imitated)[0](0, np.arange(tw.ROWS))
  verdict = tw.play(world, made, np.asarray(habits)).verdict
  family = made.data["family"]
  assert not np.any(verdict.parts[:, 3]) and np.all(verdict.correct[family == 0])
  assert not np.any(verdict.correct[family == 2])
  hard = verdict.correct[family == 1]
  assert abs(np.mean(hard) - shown) <= 4 * np.sqrt(shown * (1 - shown) / len(hard))


def test_shares_above_one_are_refused():
  with pytest.raises(ValueError, match="hopeless"):
    tw.get("gated", hard=0.6, hopeless=0.6)
