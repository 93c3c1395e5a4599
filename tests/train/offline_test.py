"""The loop without sampling, on a tiny model: learning, resume, export, and its one-line errors."""

import json

import jax
import numpy as np
import pytest
import tiny

from grpo_jax import data
from grpo_jax.data.problem import Problem
from grpo_jax.data.prompts import PromptSpec
from grpo_jax.errors import UserError
from grpo_jax.models import decoder, loading
from grpo_jax.rollout import fixed
from grpo_jax.rollout.choose import Choice
from grpo_jax.rollout.collect import Sampling
from grpo_jax.run.metrics import read_metrics
from grpo_jax.train import launch, llm, offline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return tiny.save_model(tmp_path_factory.mktemp("offline") / "model")


def config(model, method="sft", **changes):
  """One device, so that a run costs little; exact answers as the reward."""
  group = 1 if method == "sft" else 2
  fields = {"loop": "offline", "method": method, "batch.group": group, "mesh.data": 1}
  fields |= {"reward.parts": ("exact",), "log.rollouts_every": 100}
  return tiny.make_config(model, **(fields | changes))


@pytest.fixture(autouse=True)
def as_a_person_runs_it(monkeypatch):
  """One device, and promotion as jax has it: optax does not keep to the strict rules."""
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda: one)
  with jax.numpy_dtype_promotion("standard"):
    yield


def sampling(**changes):
  fields = {
    "config": tiny.CONFIG,
    "tokenizer": tiny.tokenizer(),
    "group": 1,
    "budget": 6,
    "max_prompt": 64,
    "stop": ("\n",),
    "stop_ids": (14, 15),
    "choice": Choice(),
    "slots": 0,
    "seed": 0,
    "mesh": None,
  }
  return Sampling(**(fields | changes))


FEW = PromptSpec(style="few_shot", shots=1)


def problem(i=0, prompt="1 + 2 =", answer="3", **meta):
  return Problem(i, prompt, prompt, answer, {"source": "sums"} | meta)


def text_of(s, ids):
  return s.tokenizer.decode(ids.tolist(), skip_special=False)


# ---- completions -> arrays -----------------------------------------------------------------------


def test_a_demonstration_is_the_answer_as_the_template_writes_it_and_ends_as_sampling_would():
  s = sampling()
  one = fixed.examples(s, [problem()], FEW, 1)[0].completions[0]
  assert text_of(s, one) == " 3\n" and one[-1] in s.stop_ids
  bare = PromptSpec(style="few_shot", template="{question}{answer}\n")
  assert text_of(s, fixed.examples(s, [problem()], bare, 1)[0].completions[0]) == "3\n"


def test_without_a_stop_text_a_completion_ends_with_eos_once():
  s = sampling(stop=(), stop_ids=(15,))
  given = [problem(0, completion=" 3"), problem(1, completion=" 3<eos>")]
  for example in fixed.examples(s, given, PromptSpec(), 1).values():
    assert text_of(s, example.completions[0]) == " 3<eos>"


def test_given_texts_stand_as_they_are_and_the_chosen_one_comes_first():
  s = sampling()
  example = fixed.examples(s, [problem(chosen="+4\n", rejected="5")], FEW, 2)[0]
  assert [text_of(s, c) for c in example.completions] == ["+4\n", "5\n"]


def test_a_made_up_wrong_number_is_near_and_never_right():
  problems = [problem(i, f"{i} + 1 =", str(i + 1)) for i in range(300)]
  made = fixed.examples(sampling(), problems, FEW, 2)
  off = [int(e.texts[1]) - int(e.texts[0]) for e in made.values()]
  assert set(off) == set(fixed.NEAR)


def test_a_wrong_answer_that_is_no_number_is_that_of_another_problem_of_the_label():
  words = [problem(i, f"{i} =", a) for i, a in enumerate(("1-1", "2-2", "3-3"))]
  made = fixed.examples(sampling(), [*words, problem(9, "=", "9-9", source="other", rejected="8",
                                                     chosen="9")], FEW, 2)  # fmt: skip
  for i in range(3):
    right, wrong = (t.strip() for t in made[i].texts)
    assert wrong != right and wrong in {"1-1", "2-2", "3-3"}


@pytest.mark.parametrize(
  ("group", "row", "changes", "message"),
  [
    (1, {"answer": None}, {}, 'has no answer to learn from; give "completion"'),
    (2, {"answer": None}, {}, 'give "chosen" and "rejected"'),
    (2, {"chosen": "1"}, {}, 'has no "rejected"'),
    (1, {"completion": " "}, {}, 'field "completion" is empty'),
    (2, {"answer": "1-1"}, {}, "every answer of 'sums' is '1-1'"),
    (1, {"answer": "1234567"}, {}, r"sample\.max_new_tokens=6: .* completion of 9 tokens"),
    (1, {"prompt": "1 + 2 ="}, {"max_prompt": 3}, r"sample\.max_prompt_tokens=3: .* 7 tokens"),
    (1, {"completion": "1\n2"}, {}, r"sample\.stop: .* completion with '\\n' before its end"),
  ],
)
def test_a_bad_row_is_one_line_that_names_the_field_and_the_fix(group, row, changes, message):
  with pytest.raises(UserError, match=message) as error:
    fixed.examples(sampling(**changes), [problem(**row)], FEW, group)
  assert "\n" not in str(error.value)


def test_assembled_rows_hold_each_completion_once_and_equal_pairs_and_padding_are_dead():
  s = sampling()
  rows = [
    problem(0, "1 + 2 =", chosen=" 3", rejected=" 44"),
    problem(1, "7 =", chosen=" 7", rejected=" 7"),
    problem(2, "2 + 2 =", chosen=" 4", rejected=" 5"),
  ]
  got = fixed.assemble(s, list(fixed.examples(s, rows, FEW, 2).values()), live=2)
  r, b = got.rollouts, got.batch
  assert r.alive.tolist() == [[True, True], [False, False], [False, False]]
  assert r.reward.tolist() == [[1, 0]] * 3 and r.prompt.tolist() == [0, 1, 2]
  texts = [text_of(s, t[m > 0]) for t, m in zip(b.tokens, b.mask, strict=True)]
  assert texts == [" 3\n", " 44\n", " 7\n", " 7\n", " 4\n", " 5\n"]
  prompts = [text_of(s, t[:n]) for t, n in zip(b.prompt_tokens, b.prompt_length, strict=True)]
  assert prompts == ["1 + 2 =", "7 =", "2 + 2 ="]


# ---- runs ----------------------------------------------------------------------------------------


def run(c, workdir):
  said = []
  workdir.mkdir(exist_ok=True)
  return offline.run(c, workdir, said.append), said


def test_sft_learns_its_demonstrations_and_reports_as_every_run_does(model, tmp_path):
  c = config(model, steps=30, **{"optimizer.lr": 2e-2, "checkpoint.every": 30})
  final, _ = run(c, tmp_path / "run")
  rows = read_metrics(tmp_path / "run")
  losses = [r["loss"] for r in rows if r["kind"] == "train"]
  assert len(losses) == 30 and np.mean(losses[-5:]) < 0.6 * losses[0]
  assert final["loss_after"] < final["loss_before"]
  assert {"accuracy_before", "accuracy_after", "problems", "wall_s"} <= final.keys()
  assert json.loads((tmp_path / "run/final.json").read_text())["problems"] == 10
  assert {p.name for p in (tmp_path / "run/rollouts").iterdir()} == {
    "step_000001.jsonl",
    "step_000030.jsonl",
  }
  assert (tmp_path / "run/report.html").exists()


def test_the_loss_of_sft_is_the_mean_nll_of_the_demonstrations_tokens(model, tmp_path):
  """By the plain causal forward of one row at a time, prompt and completion in one."""
  c = config(model, steps=1)
  run(c, tmp_path / "run")
  held = next(r for r in read_metrics(tmp_path / "run") if r["kind"] == "eval")
  model_config, params, tokenizer = loading.load(str(model))
  problems = data.load(c.data.to_dict(), render=tokenizer.chat).heldout
  expected = 0.0
  for chunk in (problems[:8], problems[8:]):  # a batch is 8 prompts
    total, count = 0.0, 0
    for p in chunk:
      prompt, own = tokenizer.encode(p.prompt), tokenizer.encode(f" {p.answer}\n")
      ids = np.zeros((1, 40), np.int32)
      ids[0, : len(prompt) + len(own)] = [*prompt, *own]
      length = np.asarray([len(prompt) + len(own)], np.int32)
      logits = decoder.logits(model_config, params, ids, length)
      logp = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
      total -= sum(logp[len(prompt) - 1 + t, token] for t, token in enumerate(own))
      count += len(own)
    expected += total / count * len(chunk) / len(problems)
  assert held["eval_loss"] == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("pack", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_dpo_starts_at_log_2_and_widens_the_margin_of_its_pairs(model, tmp_path, monkeypatch, pack):
  monkeypatch.setattr(fixed, "NEAR", (1, 2, 3))  # completions of one bucket: fewer to compile
  c = config(model, "dpo", steps=10, **{"score.pack": pack, "optimizer.lr": 1e-2})
  run(c, tmp_path / "run")
  train = [r for r in read_metrics(tmp_path / "run") if r["kind"] == "train"]
  assert train[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
  assert train[0]["margin"] == pytest.approx(0, abs=1e-5)
  assert train[-1]["margin"] > 1 and train[-1]["pair_accuracy"] > 0.8


def test_a_resumed_run_equals_one_in_one_go_bitwise(model, tmp_path):
  changes = {"checkpoint.every": 2, "checkpoint.keep": 5}
  run(config(model, steps=4, **changes), tmp_path / "whole")
  run(config(model, steps=2, **changes), tmp_path / "cut")
  _, said = run(config(model, steps=4, **changes), tmp_path / "cut")
  assert "resumed after step 2" in said
  keep = ("step", "loss", "grad_norm", "entropy", "tokens")
  rows = [
    [{k: r[k] for k in keep} for r in read_metrics(tmp_path / name) if r["kind"] == "train"]
    for name in ("whole", "cut")
  ]
  assert rows[0] == rows[1] and len(rows[0]) == 4


def test_sft_exports_a_model_that_grpo_starts_from(model, tmp_path):
  out = tmp_path / "exported"
  c = config(model, steps=2, export=str(out))
  sft, _ = run(c, tmp_path / "sft")
  again, _ = run(c, tmp_path / "sft")  # finished: neither trained nor exported again
  assert again["wall_s"] == pytest.approx(sft["wall_s"])
  with pytest.raises(UserError, match=r"export=.*exists and is not empty; name another"):
    run(config(model, steps=3, export=str(out)), tmp_path / "sft")
  exported = tmp_path / "grpo_exported"
  c = config(out, "grpo", loop="llm", steps=1, export=str(exported), **{"batch.group": 4})
  (tmp_path / "grpo").mkdir()
  grpo = llm.run(c, tmp_path / "grpo", lambda _: None)
  assert grpo["accuracy_before"] == sft["accuracy_after"]
  before, after = (loading.load(str(folder))[1]["embed"] for folder in (model, out))
  assert np.abs(before - after).max() > 1e-4
  assert (exported / "model.safetensors").exists()


def test_data_without_answers_is_measured_by_its_loss_alone(model, tmp_path):
  rows = [{"prompt": f"{i} =", "completion": f" {i % 5}"} for i in range(20)]
  path = tmp_path / "rows.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  c = config(model, steps=1, **{"eval.problems": 4})
  c.data = {"source": "jsonl", "path": str(path), "heldout": 4}
  final, said = run(c, tmp_path / "run")
  assert final["accuracy_before"] is None and final["problems"] == 0
  assert final["loss_after"] < final["loss_before"]
  assert any("no answers to judge by" in text for text in said)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"method": "grpo"}, "loop 'offline': it does not play the plan Flat.*loop='llm'"),
    ({"batch.group": 4}, "batch.group=4: sft learns from 1 given"),
    ({"method": "dpo", "batch.group": 1}, "batch.group=1: dpo learns from 2 given"),
    ({"eval.problems": 11}, "eval.problems=11: only 10 problems are held out"),
    ({"loop": "llm"}, "loop 'llm': it does not play the plan Fixed.*loop='offline'"),
  ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_written(
  model, tmp_path, changes, message
):
  with pytest.raises(UserError, match=message):
    launch.launch(config(model, **changes), tmp_path / "run")
  assert not (tmp_path / "run/metrics.jsonl").exists()
