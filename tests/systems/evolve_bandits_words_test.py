"""Histories of bandits as text."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.errors import UserError
from grpo_jax.systems.evolve_bandits import words

SCENE = words.scenario("buttons", 3)
PULLS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 1.0])), max_size=12)


@given(PULLS, st.randoms(use_true_random=False))
def test_a_summary_is_a_function_of_the_multiset_of_pulls_and_a_raw_history_is_not(pulls, random):
  mixed = random.sample(pulls, len(pulls))
  for style in ("summary", "guided"):
    assert words.body(SCENE, style, mixed) == words.body(SCENE, style, pulls)
  same = words.body(SCENE, "raw", mixed) == words.body(SCENE, "raw", pulls)
  assert same == (mixed == pulls)


def test_the_texts_of_one_history():
  pulls = [(0, 1.0), (2, 0.0), (0, 1.0), (0, 0.0)]
  assert words.body(SCENE, "raw", pulls) == (
    "press red: 1\npress green: 0\npress red: 1\npress red: 0\npress"
  )
  assert words.body(SCENE, "summary", pulls) == (
    "red: chosen 3, mean 0.67\nblue: chosen 0, mean 0.00\ngreen: chosen 1, mean 0.00\npress"
  )
  red, green = math.sqrt(0.5 * math.log(4) / 3), math.sqrt(0.5 * math.log(4))
  assert words.body(SCENE, "guided", pulls) == (
    f"red: chosen 3, mean 0.67, value 0.67, bonus {red:.2f}\n"
    "blue: chosen 0, mean 0.00, value 0.00, bonus inf\n"
    f"green: chosen 1, mean 0.00, value 0.00, bonus {green:.2f}\npress"
  )
  assert [words.body(SCENE, s, []).splitlines()[-1] for s in words.STYLES] == ["press"] * 3


@given(PULLS)
def test_guidance_is_the_formula_of_the_paper(pulls):
  value, bonus = words.guide(*words.tally_text(3, pulls), alpha=0.7)
  for a in range(3):
    rewards = [r for arm, r in pulls if arm == a]
    if not rewards:
      assert value[a] == 0 and bonus[a] == np.inf
      continue
    assert value[a] == pytest.approx(np.mean(rewards))
    assert bonus[a] == pytest.approx(np.sqrt(0.7 * np.log(len(pulls)) / len(rewards)))


def test_examples_are_every_second_choice_of_a_trajectory_from_the_third_on():
  pulls = [(t % 3, float(t % 2)) for t in range(11)]
  text = words.few_shot(SCENE, "summary", pulls)
  shown = text.split("A game:\n\n")[1:]
  for example, t in zip(shown, (2, 4, 6, 8, 10), strict=True):
    assert example == words.body(SCENE, "summary", pulls[:t]) + f" {SCENE.names[t % 3]}\n\n"
  assert words.head(SCENE, "summary", text).count("A game:") == 5
  with pytest.raises(UserError, match="need 11 pulls, there are 10"):
    words.few_shot(SCENE, "summary", pulls[:10])
  assert words.few_shot(SCENE, "summary", [], count=0) == ""


@pytest.mark.parametrize("name", words.SCENARIOS)
def test_a_scenario_names_its_arms_and_no_name_twice(name):
  for arms in (1, 2, 10):
    scene = words.scenario(name, arms)
    text = words.head(scene, "raw")
    assert len(set(scene.names)) == arms and "{" not in text
    assert all(n in text for n in scene.names)
  with pytest.raises(UserError, match=r"data\.arms=11: a verbal scenario has 1 to 10"):
    words.scenario(name, 11)


# ---- users ---------------------------------------------------------------------------------------

CONTEXTS = np.asarray([[0.6, 0.0], [0.0, 0.5]])
FILMS = words.Scenario("{names}", "show", ("Fox", "Owl"), ("man, 20", "woman, 30"), CONTEXTS)


def test_the_texts_of_a_history_with_users():
  pulls, seen = [(1, 4.0), (1, 2.5), (0, -1e-7)], [0, 1, 1, 0]
  assert words.body(FILMS, "raw", pulls, seen) == (
    "man, 20\nshow Owl: 4\nwoman, 30\nshow Owl: 2.5\nwoman, 30\nshow Fox: 0\nman, 20\nshow"
  )
  assert words.body(FILMS, "summary", pulls, seen) == (
    "Fox: chosen 1, mean 0.00\nOwl: chosen 2, mean 3.25\nman, 20\nshow"
  )
  # Of Fox nothing is known about the first number; of Owl, A = diag(1.36, 1.25), b = (2.4, 1.25).
  assert words.body(FILMS, "guided", pulls, seen) == (
    f"Fox: chosen 1, mean 0.00, value 0.000, bonus {0.5 * 0.6:.3f}\n"
    f"Owl: chosen 2, mean 3.25, value {0.6 * 2.4 / 1.36:.3f}, bonus {0.3 / 1.36**0.5:.3f}\n"
    "man, 20\nshow"
  )
  for style in words.STYLES:
    assert words.body(FILMS, style, [], [1]).endswith("woman, 30\nshow")
    assert words.body(FILMS, style, pulls, [0, 1, 1, 1]) != words.body(FILMS, style, pulls, seen)


def test_examples_with_users_ask_for_the_user_of_their_step():
  pulls, seen = [(0, 1.0), (1, 2.0), (0, 3.0)], [1, 0, 1, 0]
  text = words.few_shot(FILMS, "raw", pulls, seen, skip=1, every=1, count=2)
  assert text == (
    "A game:\n\nwoman, 30\nshow Fox: 1\nman, 20\nshow Owl\n\n"
    "A game:\n\nwoman, 30\nshow Fox: 1\nman, 20\nshow Owl: 2\nwoman, 30\nshow Fox\n\n"
  )


def test_unknown_names_are_one_line():
  with pytest.raises(UserError, match=r"data\.scenario: unknown name 'button'; did you mean"):
    words.scenario("button", 2)
  with pytest.raises(UserError, match="history: unknown name 'sumary'; did you mean 'summary'"):
    words.head(SCENE, "sumary")
