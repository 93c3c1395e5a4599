"""A config of the loop "fused", as a person runs it."""

import json

import numpy as np
import pytest

from experiments import train
from experiments.common import cli
from grpo_jax.train.programs import fused


def test_a_config_runs_to_its_files_and_is_not_run_twice(tmp_path, capsys):
  command = ["--config=configs/token_world.py:debug", f"--workdir={tmp_path / 'run'}"]
  assert train.main(command) == 0
  first = capsys.readouterr().out
  final = json.loads(first.splitlines()[-1].removeprefix("final: "))
  assert final == json.loads((tmp_path / "run/final.json").read_text())
  with np.load(tmp_path / "run/curves.npz") as curves:
    assert curves["eval_accuracy"].shape == (2, 3) and curves["reward"].shape == (2, 4)
    assert final["accuracy_after"] == pytest.approx(curves["eval_accuracy"][:, -1].mean())
  rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  assert [json.loads(r)["kind"] for r in rows].count("eval") == 3 and len(rows) == 7
  assert train.main(command) == 0
  assert capsys.readouterr().out.splitlines()[-1] == first.splitlines()[-1]


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.world=hidden_numbr", "did you mean 'hidden_number'"),
    ("--config.plan.eval_every=3", "updates=4: must be a multiple of eval_every=3"),
    ("--config.method=dpo", "loop 'fused': it does not play the plan Fixed"),
    ("--config.plan.split=hash", 'use split="id"'),
    ("--config.seeds=0", "seeds=0"),
  ],
)
def test_what_cannot_run_is_one_line_and_leaves_nothing(tmp_path, capsys, flag, message):
  folder = tmp_path / "run"
  assert train.main(["--config=configs/token_world.py:debug", flag, f"--workdir={folder}"]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1 and not folder.exists()


def test_a_config_names_every_size():
  c, _ = cli.load_config("configs/token_world.py")
  assert {*c.plan.keys()} | {"world_seed"} == {*fused.Sizes.__dataclass_fields__}
