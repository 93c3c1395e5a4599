"""A passport says what was measured, once, and bad input is one line."""

import json

import pytest

from experiments import world

TINY = ("--hidden=16", "--layers=1", "--steps=2", "--warm_steps=10", "--updates=2", "--prompts=2")
TINY += ("--group=2", "--heldout=8")
NAME = "sequence:items=3,task=copy"


@pytest.mark.slow
def test_a_passport_holds_what_a_study_asks_of_a_world(tmp_path):
  out = tmp_path / "worlds.json"
  assert world.main([NAME, *TINY, f"--out={out}"]) == 0
  record = json.loads(out.read_text())[NAME]
  assert record["settings"]["hidden"] == 16 and record["learnable"] is False
  prompts, blind = record["prompts"], record["blind"]
  assert prompts["split"] == "hash" and prompts["overlap"] == 0 and prompts["prompts"] == 8**3
  assert prompts["measured_on"] == "held-out prompts" and not prompts["at_least"]
  assert blind["best"] == 1 and 0 <= blind["constant_reward"] < 0.1
  assert record["supervised"]["steps"] == 2 and record["supervised"]["reward"] < 0.9
  assert record["grpo"]["updates_per_cpu_s"] > 0 and len(record["grpo"]["parts"]["right"]) == 2


def test_blind_answers_and_supervised_steps_are_measured_in_a_world_of_turns():
  from experiments.common import passports
  from grpo_jax import envs

  small = world.Settings(hidden=16, layers=1, steps=2, heldout=8)
  one_number = envs.get("hidden_number", numbers=2, guesses=1)
  blind = passports.blind(one_number, small)
  assert blind["chance"] == pytest.approx(1 / 8) and 0 < blind["constant_reward"] <= 1
  assert passports.supervised(one_number, small)["steps"] == 2


def test_the_same_command_measures_nothing_again_and_others_merge_into_the_file(
  tmp_path, monkeypatch
):
  from experiments.common import passports

  out, asked = tmp_path / "worlds.json", []
  stage = lambda name: lambda *args: asked.append(name) or {"reward": 0.5}
  monkeypatch.setattr(passports, "STAGES", {name: stage(name) for name in passports.STAGES})
  for _ in range(2):
    assert world.main([NAME, f"--out={out}"]) == 0
  assert len(asked) == 4
  before = json.loads(out.read_text())
  assert world.main(["countdown", f"--out={out}"]) == 0
  after = json.loads(out.read_text())
  assert after[NAME] == before[NAME] and list(after) == ["countdown", NAME]
  assert after["countdown"]["learnable"] is False


def test_a_passport_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
  from experiments.common import passports

  asked, out = [], tmp_path / "worlds.json"

  def stage(name):
    def measure(*args):
      asked.append(name)
      if asked.count("supervised") == 1 and name == "supervised":
        raise KeyboardInterrupt
      return {"reward": 1.0}

    return measure

  monkeypatch.setattr(passports, "STAGES", {name: stage(name) for name in passports.STAGES})
  command = ["countdown", f"--out={out}"]
  assert world.main(command) == 130 and world.main(command) == 0
  assert asked == ["prompts", "blind", "supervised", "supervised", "grpo"]
  assert world.main([*command, "--updates=2"]) == 0 and asked[5:] == ["grpo"]
  assert world.main([*command, "--updates=2", "--seed=1"]) == 0 and len(asked) == 10


def test_worlds_without_enough_prompts_are_measured_on_training_problems():
  from experiments.common import passports
  from grpo_jax import envs

  settings = world.Settings(heldout=8)
  found = passports.prompts(envs.get("hidden_number"), settings)
  assert found["split"] == "id" and found["overlap"] == 1 and found["prompts"] == 1
  assert found["measured_on"] == "training problems"


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ([], "give worlds"),
    (["countdwn"], "did you mean 'countdown'"),
    (["countdown:number=3"], "did you mean 'numbers'"),
    (["countdown:numbers"], "write parameters as key=value"),
    (["countdown", "--stesp=3"], "did you mean '--steps'"),
    (["countdown", "--lr=fast"], "give a number"),
    (["countdown", "--updates=1.5"], "give a whole number"),
    (["countdown", "--split=odd"], "--split"),
    (["countdown", "--all"], "or --all"),
    (["hidden_number", "--split=hash"], "too few to hold some out"),
  ],
)
def test_bad_input_is_one_line(argv, message, capsys, tmp_path):
  assert world.main([*argv, f"--out={tmp_path / 'worlds.json'}"]) == 2
  said = capsys.readouterr().err
  assert message in said and said.count("\n") == 1 and said.startswith("error: ")


def test_names_are_written_as_on_the_command_line():
  params = {"shown": 0, "task": "max", "hard": 0.5, "on": True}
  text = world.key_of("gated", params)
  assert text == "gated:hard=0.5,on=true,shown=0,task=max" and world.named(text) == (
    "gated",
    params,
  )
