"""No held-out question is ever trained on, and the same seed gives the same problems."""

import collections
import re
import subprocess
import sys

import pytest

from grpo_jax import reasoning_gym as lean
from grpo_jax.data import load
from grpo_jax.errors import UserError
from grpo_jax.verifiers.pool import RewardPool


def chain_sum(label, digits):
  params = {"min_terms": 2, "max_terms": 2, "min_digits": digits, "max_digits": digits}
  return {"name": "chain_sum", "label": label, "params": params}


def config(**changes):
  return {
    "source": "reasoning_gym",
    "mix": [chain_sum("1-digit", 1), chain_sum("2-digit", 2)],
    "size": 400,
    "heldout": 256,
    "seed": 0,
    "prompt": {"style": "few_shot", "shots": 8, "question_regex": r": (.*)$"},
  } | changes


def test_heldout_shots_and_train_share_no_question_and_difficulties_are_halved():
  data = load(config())
  train, held = [p.question for p in data.train], [p.question for p in data.heldout]
  shots = [p.question for p in data.shots]
  assert len(set(train)) == len(train) and len(set(held)) == len(held) == 256
  assert not set(train) & set(held) and not set(shots) & (set(train) | set(held))
  count = collections.Counter(p.meta["source"] for p in data.heldout)
  assert count == {"1-digit": 128, "2-digit": 128}
  first = collections.Counter(p.meta["source"] for p in data.heldout[:32])
  assert first == {"1-digit": 16, "2-digit": 16}


def test_ids_are_positions_and_heldout_follows():
  data = load(config())
  assert [p.id for p in data.train + data.heldout] == list(range(len(data.train) + 256))


def test_the_heldout_questions_of_an_exhausted_space_do_not_depend_on_the_seed():
  """All 200 questions are found, so the text alone decides."""
  a = load(config(mix=[chain_sum("1-digit", 1)], heldout=100))
  b = load(config(mix=[chain_sum("1-digit", 1)], heldout=100, seed=7))
  assert {p.question for p in a.heldout} == {p.question for p in b.heldout}
  assert len(a.train) + len(a.shots) == 100


def test_same_seed_same_problems_other_seed_others():
  a, b, c = load(config()), load(config()), load(config(seed=1))
  assert a.train == b.train and a.heldout == b.heldout
  assert [p.question for p in a.train] != [p.question for p in c.train]


def test_overlapping_components_do_not_leak():
  """Both components draw from the same 200 questions."""
  mix = [chain_sum("a", 1), chain_sum("b", 1) | {"weight": 1.0}]
  data = load(config(mix=mix, size=40, heldout=60))
  assert not {p.question for p in data.train} & {p.question for p in data.heldout}


def test_answers_are_right():
  for p in load(config()).heldout:
    a, op, b = re.search(r"(\d+) ([+-]) (\d+) =$", p.prompt).groups()
    assert int(p.answer) == (int(a) + int(b) if op == "+" else int(a) - int(b))


def test_few_shot_prompt_is_short_and_ends_before_the_answer():
  data = load(config())
  lines = data.train[0].prompt.split("\n")
  assert len(lines) == 9 and all(re.fullmatch(r"\d+ [+-] \d+ = -?\d+", x) for x in lines[:8])
  assert re.fullmatch(r"\d+ [+-] \d+ =", lines[8])
  assert data.stop == "\n"
  assert len({p.prompt.rpartition("\n")[0] for p in data.train + data.heldout}) == 1


def test_chat_prompt_goes_through_the_tokenizers_template():
  spec = {"style": "chat", "shots": 1, "system": "Be brief.", "question_regex": r"\d.*"}
  render = lambda messages: "|".join(f"{m['role']}:{m['content']}" for m in messages)
  data = load(config(prompt=spec), render)
  shot, p = data.shots[0], data.train[0]
  ask = lambda q: q.partition(": ")[2]
  expected = f"system:Be brief.|user:{ask(shot.question)}|assistant:{shot.answer}"
  assert p.prompt == f"{expected}|user:{ask(p.question)}"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"mix": [{"name": "chain_sun"}]}, "did you mean 'chain_sum'"),
    ({"mix": [{"name": "chain_sum", "params": {"min_term": 2}}]}, "did you mean 'min_terms'"),
    ({"mix": [{"name": "chain_sum", "params": {"min_terms": 9}}]}, "max_terms must be >="),
    ({"mix": [{"name": "chain_sum", "wieght": 2}]}, "did you mean 'weight'"),
    ({"mix": [chain_sum("a", 1), chain_sum("a", 2)]}, "label 'a' is used twice"),
    ({"mix": []}, "data.mix: empty"),
    ({"mix": [chain_sum("1-digit", 1)], "heldout": 200}, "1-digit has 200 distinct questions"),
    ({"heldouts": 3}, "did you mean 'heldout'"),
    ({"source": "reasoning-gym"}, "did you mean 'reasoning_gym'"),
    ({"heldout": -1}, "data.heldout: expected a count"),
    ({"prompt": {"style": "fewshot"}}, "did you mean 'few_shot'"),
    ({"prompt": {"style": "few_shot", "template": "{question}"}}, "must contain {answer}"),
    ({"prompt": {"question_regex": "("}}, "not a regular expression"),
    ({"prompt": {"question_regex": "xyz"}}, "does not match the question"),
    ({"prompt": {"style": "chat"}}, "chat template"),
    ({"prompt": {"style": "few_shot", "shots": 300}, "size": 80}, "data.heldout|data.prompt.shots"),
  ],
)
def test_bad_config_is_one_line_that_names_the_field(change, message):
  with pytest.raises(UserError, match=message) as caught:
    load(config(**change))
  assert "\n" not in str(caught.value)


def test_a_config_dict_is_taken_as_it_is():
  import ml_collections

  spec = config()
  spec["mix"] = tuple(ml_collections.ConfigDict(c) for c in spec["mix"])
  assert load(ml_collections.ConfigDict(spec)).train == load(config()).train


def test_the_tasks_own_scorer_judges_in_the_pool():
  data = load(config(size=64))
  problems = [*data.train[:8], *data.train[-8:]]
  with RewardPool(data.scorer_spec, tasks=data.tasks) as pool:
    right = pool.score([f" {p.answer}\n1 + 1 = 2" for p in problems], problems)
    wrong = pool.score(["x"] * 16, problems)
    loose = pool.score([f"+0{p.answer}.0" for p in problems if int(p.answer) >= 0], problems[:0] or
                       [p for p in problems if int(p.answer) >= 0])  # fmt: skip
  assert right.correct.all() and right.reward.sum() == 16 and not wrong.correct.any()
  assert loose.correct.all()


def test_one_task_is_loaded_without_the_library_and_leaves_no_stub_behind():
  code = (
    "import sys, importlib.util; from grpo_jax.reasoning_gym import gym_dataset\n"
    "d = gym_dataset('chain_sum', {'size': 3, 'seed': 1})\n"
    "assert len(d[0]['answer']) and d.score_answer(d[0]['answer'], d[0]) == 1.0\n"
    "assert 'sympy' not in sys.modules\n"
    "assert not [m for m in sys.modules if m.startswith('reasoning_gym')]\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_every_task_of_the_library_loads_lean_and_scores_as_it_does_itself():
  import warnings

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    names = sorted(set(DATASETS) - {"composite"})
    assert len(names) >= 100
    for name in names:
      theirs = reasoning_gym.create_dataset(name, size=2, seed=3)
      saved = {m: sys.modules.pop(m) for m in list(sys.modules) if m.startswith("reasoning_gym")}
      try:
        ours = lean.gym_dataset(name, {"size": 2, "seed": 3})
      finally:
        sys.modules.update(saved)
      entry = theirs[0]
      assert str(ours[0]["question"]) == str(entry["question"]), name
      assert ours.score_answer(entry["answer"], entry) == theirs.score_answer(
        entry["answer"], entry
      ), name
