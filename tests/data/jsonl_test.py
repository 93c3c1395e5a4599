"""A bad row is named by file, line and field, with what to do."""

import json

import pytest

from grpo_jax.data import load
from grpo_jax.data.jsonl import read
from grpo_jax.errors import UserError


def written(tmp_path, *lines, name="rows.jsonl"):
  path = tmp_path / name
  path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
  return str(path)


GOOD = '{"prompt": "2 + 2 =", "answer": "4"}'


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"prompt": "2 + 2 ="}', 'field "answer" is missing; give every row an? "answer" string'),
    ('{"answer": "4"}', 'field "prompt" is missing'),
    ('{"prompt": "a", "answer": null}', 'field "answer" is null'),
    ('{"prompt": "a", "answer": ["4"]}', 'field "answer" is list'),
    ('{"prompt": "a", "answer": true}', 'field "answer" is bool'),
    ('{"prompt": "a", "answer": NaN}', 'field "answer" is float'),
    ('{"prompt": "a", "answer": " "}', 'field "answer" is empty'),
    ('{"prompt": "  ", "answer": "4"}', 'field "prompt" is empty'),
    ('{"prompt": "a", "answer": "4"', "not valid JSON .*column"),
    ("[" * 100_000, "not valid JSON"),
    ('["a", "4"]', "expected an object"),
    (b'{"prompt": "\xff", "answer": "4"}', "not UTF-8"),
    ('{"prompt": "a", "answer": "4", "completion": 1.5e400}', 'field "completion"'),
  ],
)
def test_a_bad_row_names_file_line_and_field(tmp_path, line, message):
  path = written(tmp_path, GOOD, "", line, GOOD)
  with pytest.raises(UserError, match=message) as caught:
    read(path)
  assert str(caught.value).startswith(f"{path}:3: ") and "\n" not in str(caught.value)


def test_rows_keep_order_further_fields_and_unicode(tmp_path):
  row = {"prompt": "é\u2028 =", "answer": 4, "source": "easy", "grade": [1, {"a": None}]}
  path = written(tmp_path, b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode(), GOOD, "")
  a, b = read(path)
  assert (a.prompt, a.answer) == ("é\u2028 =", "4")
  assert a.meta == {"source": "easy", "grade": [1, {"a": None}]}
  assert (b.prompt, b.answer, b.meta) == ("2 + 2 =", "4", {})


def test_preference_pairs_need_no_answer(tmp_path):
  path = written(tmp_path, '{"prompt": "a", "chosen": "b", "rejected": "c"}')
  (p,) = read(path, needs=("chosen", "rejected"))
  assert p.answer is None and p.meta == {"chosen": "b", "rejected": "c"}
  with pytest.raises(UserError, match='field "completion" is missing'):
    read(path, needs=("completion",))


def test_missing_and_empty_files_are_named(tmp_path):
  with pytest.raises(UserError, match="cannot read .*none.jsonl"):
    read(str(tmp_path / "none.jsonl"))
  with pytest.raises(UserError, match="has no rows"):
    read(written(tmp_path, "", ""))


def rows(n, repeat=1):
  return [json.dumps({"prompt": f"q{i}", "answer": str(i)}) for i in range(n)] * repeat


def test_repeated_questions_never_straddle_the_split(tmp_path):
  data = load({"source": "jsonl", "path": written(tmp_path, *rows(20, repeat=3)), "heldout": 5})
  held = [p.question for p in data.heldout]
  assert len(set(held)) == len(held) == 5 and len(data.train) == 45
  assert not set(held) & {p.question for p in data.train}
  assert [p.id for p in data.train + data.heldout] == list(range(50))


def test_a_heldout_file_is_taken_out_of_the_training_rows(tmp_path):
  path = written(tmp_path, *rows(20))
  held = written(tmp_path, *rows(4), name="held.jsonl")
  data = load({"source": "jsonl", "path": path, "heldout_path": held})
  assert len(data.heldout) == 4 and len(data.train) == 16 and data.dropped == 4


def test_questions_that_make_the_prompt_of_a_held_out_one_are_left_out_and_counted(tmp_path):
  lines = [
    json.dumps({"prompt": f"{name}: add {i}", "answer": str(i)})
    for i in range(20)
    for name in ("Ann", "Bob", "Cy")
  ]
  spec = {"question_regex": r"add \d+"}
  config = {"source": "jsonl", "path": written(tmp_path, *lines), "heldout": 6, "prompt": spec}
  data = load(config)
  held, train = {p.prompt for p in data.heldout}, [p.prompt for p in data.train]
  assert held.isdisjoint(train) and set(train) | held == {f"add {i}" for i in range(20)}
  assert data.dropped == 60 - 6 - len(train) > 0
  assert load(config | {"prompt": None}).dropped == 0
  with pytest.raises(UserError, match="question_regex: it leaves no training prompt"):
    load(config | {"prompt": {"question_regex": "add"}})


def test_heldout_that_leaves_nothing_to_train_on_is_refused(tmp_path):
  with pytest.raises(UserError, match="data.heldout: 20 of 20"):
    load({"source": "jsonl", "path": written(tmp_path, *rows(20)), "heldout": 20})


def test_few_shot_over_jsonl(tmp_path):
  spec = {"style": "few_shot", "shots": 2, "template": "Q: {question}\nA: {answer}\n\n"}
  path = written(tmp_path, *rows(20))
  data = load({"source": "jsonl", "path": path, "heldout": 5, "prompt": spec})
  shots = "".join(f"Q: {s.question}\nA: {s.answer}\n\n" for s in data.shots)
  assert data.train[0].prompt == f"{shots}Q: {data.train[0].question}\nA:"
  assert data.stop == "\n\n" and data.scorer_spec[0]["name"] == "math"
