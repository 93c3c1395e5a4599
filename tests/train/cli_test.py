"""Bad input through the command line: one line naming the field, exit code 2, nothing touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from experiments import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("cli")
  tiny.save_model(folder / "model")
  tiny.write_config(folder / "c.py", tiny.make_config(folder / "model"))
  return folder


def fails(capsys, *argv) -> str:
  """The one line of the error."""
  assert train.main([str(a) for a in argv]) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ") and err.count("\n") == 1, err
  assert len(err) < 420
  return err


CONFIG = "--config={folder}/c.py"
BAD_FLAGS = {
  "misspelt key": (
    [CONFIG, "--config.bach=3"],
    r"--config: unknown name 'bach'; did you mean 'batch'?",
  ),
  "misspelt nested key": (
    [CONFIG, "--config.batch.promts=3"],
    r"--config.batch: unknown name 'promts'; did you mean 'prompts'?",
  ),
  "misspelt group": (
    [CONFIG, "--config.btch.prompts=3"],
    "unknown name 'btch'; did you mean 'batch'?",
  ),
  "key under a value": ([CONFIG, "--config.steps.more=3"], "--config.steps: holds one value"),
  "group as a value": (
    [CONFIG, "--config.batch=3"],
    "--config.batch: a group of fields; set one of",
  ),
  "word for a number": (
    [CONFIG, "--config.steps=many"],
    "steps=many: expected a whole number, like 4",
  ),
  "fraction for a count": (
    [CONFIG, "--config.batch.group=2.5"],
    "batch.group=2.5: expected a whole",
  ),
  "number for a flag": ([CONFIG, "--config.score.pack=3"], "score.pack=3: expected True or False"),
  "flag for a number": (
    [CONFIG, "--config.optimizer.lr=True"],
    "optimizer.lr=True: expected a number",
  ),
  "unknown flag": (["--confg=c.py"], "unknown name '--confg'; did you mean '--config'?"),
  "no value": (["--config"], "--config: needs a value"),
  "no config": (["--workdir=w"], "--config: missing; for example --config=configs/quickstart.py"),
  "missing config file": (
    ["--config=configs/quickstrat.py"],
    "unknown name 'configs/quickstrat.py'; did you mean 'configs/quickstart.py'?",
  ),
  "unknown variant": (["--config=configs/quickstart.py:debg"], "did you mean 'debug'?"),
}


@pytest.mark.parametrize("flags, message", BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags(folder, capsys, flags, message):
  assert message in fails(capsys, *(flag.format(folder=folder) for flag in flags))


BAD_FILES = {
  "syntax": ("def get_config(:\n", "SyntaxError: invalid syntax ({path}, line 1)"),
  "no function": ("x = 1\n", "it has no get_config()"),
  "not a config": ("def get_config():\n  return 3\n", "must return a ConfigDict"),
  "raises": ("def get_config():\n  return {}['a']\n", "KeyError: 'a' ({path}, line 2)"),
}


@pytest.mark.parametrize("text, message", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_config_files(tmp_path, capsys, text, message):
  path = tmp_path / "bad.py"
  path.write_text(text)
  assert message.format(path=path) in fails(capsys, f"--config={path}")


BAD_VALUES = {
  "steps=0": "steps=0: must be a whole number of at least 1",
  "seed=-1": "seed=-1: must be a whole number of at least 0",
  "batch.prompts=0": "batch.prompts=0: must be",
  "batch.mini=3": "batch.prompts=8 must be a multiple of batch.mini=3",
  "batch.micro=5": "batch.prompts / batch.mini = 8 must be a multiple of batch.micro=5",
  "sample.temperature=0": "sample.temperature=0.0: greedy choice is not a policy",
  "sample.max_new_tokens=1": "sample.max_new_tokens=1: must be",
  "optimizer.lr=-1": "optimizer.lr=-1.0: must be above 0",
  "optimizer.b2=1": "optimizer.b2=1.0: must be at least 0 and below 1",
  "optimizer.name=adam": "optimizer.name='adam': use one of adamw, sgd",
  "optimizer.schedule=step": "optimizer.schedule='step': use one of constant, linear, cosine",
  "loop=lm": "loop: unknown name 'lm'; did you mean 'llm'?",
  "method=grop": "method: unknown name 'grop'; did you mean 'grpo'",
  "method_args.eps_hgih=0.3": "method grpo: unknown name 'eps_hgih'; did you mean",
  "method=sft": "method=sft: loop 'llm': it does not play the plan Fixed",
  "mesh.data=3": "does not fit 8 devices",
  "mesh.fsdp=0": "mesh.fsdp=0: must be a whole number above 0, or -1",
  "batch.prompts=6": "a micro-batch of 6 prompts must be a multiple of mesh.data * mesh.fsdp = 8",
  "eval.problems=11": "eval.problems=11: only 10 problems are held out",
  "eval.top_p=0": "want temperature >= 0, top_k >= 0 and 0 < top_p <= 1",
  "data.heldut=3": "data: unknown name 'heldut'; did you mean 'heldout'?",
  "data.prompt.style=fewshot": "data.prompt.style: unknown name 'fewshot'; did you mean 'few_shot'",
  "sample.max_prompt_tokens=9": "sample.max_prompt_tokens=9: the prompt of",
  "sample.max_prompt_tokens=255": "the model was made for 256 positions",
  "reward.workers=0": "reward.workers=0: must be above 0",
  "reward.parts=math2": "unknown name 'math2'; did you mean 'math'?",
  "reward.parts=no_module:f": "reward.parts.name: cannot import 'no_module:f'",
  "model=nowhere": "model='nowhere': no such path",
}


@pytest.mark.parametrize("change", BAD_VALUES)
def test_bad_values(folder, capsys, tmp_path, change):
  argv = [f"--config={folder / 'c.py'}", f"--workdir={tmp_path / 'w'}", f"--config.{change}"]
  assert BAD_VALUES[change] in fails(capsys, *argv)
  assert not list((tmp_path / "w").glob("*"))


def run_model(folder, capsys, tmp_path, model) -> str:
  """The error of a run with this model, in a workdir that must stay as it is."""
  workdir = tmp_path / "w"
  workdir.mkdir()
  argv = [f"--config={folder / 'c.py'}", f"--workdir={workdir}", f"--config.model={model}"]
  message = fails(capsys, *argv)
  assert not list(workdir.glob("*"))
  return message


def test_missing_and_truncated_model_files(folder, capsys, tmp_path):
  (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
  assert "cut.gguf" in run_model(folder, capsys, tmp_path, tmp_path / "cut.gguf")
  (tmp_path / "w").rmdir()
  assert "gone.gguf" in run_model(folder, capsys, tmp_path, tmp_path / "gone.gguf")


def test_a_truncated_weights_file(folder, capsys, tmp_path):
  model = shutil.copytree(folder / "model", tmp_path / "model")
  data = (model / "model.safetensors").read_bytes()
  (model / "model.safetensors").write_bytes(data[:-100])
  assert "truncated" in run_model(folder, capsys, tmp_path, model)


def test_a_vocabulary_smaller_than_the_tokenizers(folder, capsys, tmp_path):
  model = shutil.copytree(folder / "model", tmp_path / "model")
  tokens = json.loads((model / "tokenizer.json").read_text())
  tokens["model"]["vocab"]["A"] = 99
  (model / "tokenizer.json").write_text(json.dumps(tokens))
  message = run_model(folder, capsys, tmp_path, model)
  assert "the tokenizer has 100 ids, the model only 16" in message


def test_a_row_without_an_answer(folder, capsys, tmp_path):
  rows = [{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": "1 + 2 ="}]
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  c = tiny.make_config(folder / "model", data={"source": "jsonl", "path": str(path)})
  config = tiny.write_config(tmp_path / "c.py", c)
  message = fails(capsys, f"--config={config}", f"--workdir={tmp_path / 'w'}")
  assert f'{path}:2: field "answer" is missing' in message


@pytest.mark.parametrize("kind", ["a file in the way", "not writable even by root"])
def test_a_workdir_that_cannot_be_written(folder, capsys, tmp_path, kind):
  (tmp_path / "file").write_text("kept")
  workdir = tmp_path / "file" / "run" if kind == "a file in the way" else Path("/proc/self")
  message = fails(capsys, f"--config={folder / 'c.py'}", f"--workdir={workdir}")
  assert f"--workdir={workdir}: cannot be written" in message
  assert (tmp_path / "file").read_text() == "kept"


def test_help_prints_the_usage():
  command = [sys.executable, "-m", "experiments.train", "--help"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT)
  assert done.returncode == 0 and not done.stderr
  assert "--config=configs/NAME.py[:variant]" in done.stdout


def test_an_error_of_the_real_command_is_one_line_and_exit_code_2(folder, tmp_path):
  done = tiny.train(folder / "c.py", tmp_path / "w", "--config.batch.group=0")
  assert done.returncode == 2 and not done.stdout
  assert done.stderr == "error: batch.group=0: must be a whole number of at least 1\n"
  assert os.listdir(tmp_path / "w") == []
