"""A run that was killed and went on equals one that was not, bit by bit."""

import contextlib
import dataclasses
import json
import random
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import pytest
import tiny

from grpo_jax.errors import UserError
from grpo_jax.rollout import collect
from grpo_jax.run import atomic, metrics
from grpo_jax.train import llm, setup

STEPS = 8
# An epoch of 16 problems ends with steps 2, 4, 6 and 8.
SCHEDULE = {"steps": STEPS, "checkpoint.every": 2, "eval.every": 3, "data.size": 15}


class Killed(BaseException):
  """Nothing catches it, as nothing catches kill -9."""


def curriculum(c):
  """The config's method with a memory that decides which problems come next."""
  method = make_method(c)

  def remember(state, rollouts, batch, now):
    return state.at[rollouts.prompt].add(jnp.mean(rollouts.reward, axis=1))

  return dataclasses.replace(
    method,
    init=lambda count: jnp.zeros(count, jnp.float32),
    remember=remember,
    # Epochs at first, as all weights are 0; later problems by weight.
    weigh=lambda state: jnp.where(jnp.max(state) > 0.8, jnp.exp(-state), 0.0),
  )


make_method = setup.make_method


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A folder with the model and a run of STEPS steps without any interruption."""
  folder = tmp_path_factory.mktemp("runs")
  tiny.save_model(folder / "model")
  with pytest.MonkeyPatch.context() as patch:
    tiny.one_device(patch)
    patch.setattr(setup, "make_method", curriculum)
    patch.syspath_prepend(str(tiny.ROOT / "tests/train"))
    c = tiny.make_config(folder / "model", **SCHEDULE)
    llm.run(c, folder / "whole", lambda text: None)
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many runs of one program
    yield folder, c
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def interrupted(c, workdir, module, name, when):
  """Runs until `module.name` is called with arguments for which `when` is true."""
  original = getattr(module, name)

  def guarded(*args, **kwargs):
    if when(*args, **kwargs):
      raise Killed
    return original(*args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, name, guarded)
    with pytest.raises(Killed):
      llm.run(c, workdir, lambda text: None)


def test_a_run_killed_at_every_kind_of_point_equals_an_uninterrupted_one(runs):
  folder, c = runs
  workdir = folder / "killed"
  evaluations = []

  def second_evaluation(*args):
    evaluations.append(args)
    return len(evaluations) == 2

  def at_step(step):
    return lambda *ask: collect.Ask(*ask).step == step

  write = metrics.MetricsWriter
  interrupted(c, workdir, llm, "Ask", at_step(1))  # before anything is saved
  assert not tiny.saved_steps(workdir)
  interrupted(c, workdir, llm, "Ask", at_step(4))
  assert tiny.saved_steps(workdir) == [2]
  evaluations.append(None)
  interrupted(c, workdir, llm, "evaluate", second_evaluation)  # inside the one of step 3
  torn = lambda path, value, **options: path.name == "4.manifest.json"
  interrupted(c, workdir, atomic, "write_json", torn)  # save 4 is there, its manifest is not
  assert tiny.saved_steps(workdir) == [2, 4]
  row = lambda self, step, values, kind="train": (step, kind) == (6, "eval")
  interrupted(c, workdir, write, "write", row)  # eval/step_000006.json is there, its row is not
  assert (workdir / "eval/step_000006.json").exists()
  interrupted(c, workdir, llm, "evaluate", lambda *args: True)  # the one of step 6 once more
  said = []
  llm.run(c, workdir, said.append)
  assert "resumed after step 4" in said
  tiny.assert_same_run(folder / "whole", workdir, STEPS)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(runs):
  folder, c = runs
  workdir = folder / "damaged"
  shutil.copytree(folder / "whole", workdir)
  (workdir / "final.json").unlink()
  files = [p for p in (workdir / "checkpoints/8").rglob("*") if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1  # one bit: no length or format changes
  largest.write_bytes(data)
  said = []
  llm.run(c, workdir, said.append)
  assert any(text.startswith("checkpoint 8 is damaged (") for text in said)
  assert "resumed after step 6" in said
  tiny.assert_same_run(folder / "whole", workdir, STEPS)


def test_checkpoints_that_are_all_damaged_are_an_error_that_leaves_them(runs):
  folder, c = runs
  workdir = folder / "ruined"
  shutil.copytree(folder / "whole", workdir)
  (workdir / "final.json").unlink()
  for path in (workdir / "checkpoints").rglob("*"):
    if path.is_file() and path.suffix != ".json":
      path.write_bytes(path.read_bytes()[:-1])
  before = (workdir / "metrics.jsonl").read_text()
  with pytest.raises(UserError, match=r"none of the checkpoints \[6, 8\] can be read"):
    llm.run(c, workdir, lambda text: None)
  assert (workdir / "checkpoints/8").exists()
  assert (workdir / "metrics.jsonl").read_text() == before


def test_a_finished_run_prints_its_line_again_and_changes_nothing(runs, capsys):
  folder, c = runs
  stamps = {p: p.stat().st_mtime_ns for p in (folder / "whole").rglob("*") if p.is_file()}
  final = llm.run(c, folder / "whole", lambda text: None)
  assert tiny.final_of(capsys.readouterr().out) == final
  assert final == json.loads((folder / "whole/final.json").read_text())
  assert stamps == {p: p.stat().st_mtime_ns for p in (folder / "whole").rglob("*") if p.is_file()}


def test_more_steps_go_on_as_if_they_had_been_asked_for_at_once(runs):
  folder, c = runs
  workdir = folder / "longer"
  short = c.copy_and_resolve_references()
  with short.unlocked():
    short.steps = 4
  llm.run(short, workdir, lambda text: None)
  llm.run(c, workdir, lambda text: None)
  trained = lambda w: [r for r in tiny.record(w)["metrics"] if r["kind"] == "train"]
  assert trained(workdir) == trained(folder / "whole")
  (arrays, host), (others, other) = (tiny.saved(folder / n, STEPS) for n in ("longer", "whole"))
  assert host == other
  assert all((arrays[k] == others[k]).all() for k in arrays)
  with pytest.raises(UserError, match=r"steps=4: this run has made 8 already"):
    llm.run(short, workdir, lambda text: None)
  # Nothing of the longer run is gone.
  assert tiny.record(workdir)["final"] == tiny.record(folder / "whole")["final"]


def test_another_config_in_the_same_folder_is_refused_by_the_name_of_the_field(runs):
  folder, c = runs
  other = c.copy_and_resolve_references()
  with other.unlocked():
    other.optimizer.lr = 1e-2
    other.method = "rloo"
  message = r"another config \(method was \"grpo\", optimizer.lr was 0.003\); use another --workdir"
  with pytest.raises(UserError, match=message):
    llm.run(other, folder / "whole", lambda text: None)


def test_steps_cannot_change_under_a_schedule_that_depends_on_them(runs, tmp_path):
  _, c = runs
  c = c.copy_and_resolve_references()
  with c.unlocked():
    c.optimizer.schedule = "cosine"
  setup.save_config(c, tmp_path)
  with c.unlocked():
    c.steps += 1
  with pytest.raises(UserError, match=r"steps=9, was 8: optimizer.schedule='cosine' depends on it"):
    setup.check_folder(c, tmp_path)


def test_a_folder_with_files_of_a_run_but_no_config_is_left_alone(runs, tmp_path):
  _, c = runs
  (tmp_path / "metrics.jsonl").write_text("precious\n")
  with pytest.raises(UserError, match=r"has metrics.jsonl but no config.json"):
    llm.run(c, tmp_path, lambda text: None)
  assert (tmp_path / "metrics.jsonl").read_text() == "precious\n"


@pytest.mark.slow
def test_kill_9_inside_saves_and_at_random_times_changes_nothing(tmp_path):
  model = tiny.save_model(tmp_path / "model")
  c = tiny.make_config(model, **SCHEDULE)
  config, cache = tiny.write_config(tmp_path / "c.py", c), tmp_path / "cache"
  done = tiny.train(config, tmp_path / "whole", cache=cache)
  assert done.returncode == 0, done.stderr
  workdir = tmp_path / "killed"
  inside, random_ = 0, random.Random(1)
  for attempt in range(30):
    process = tiny.start(config, workdir, cache=cache)
    if attempt % 2:
      inside += tiny.kill_inside_a_save(process, workdir)
    elif attempt > 4:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(4 + 12 * random_.random())
      tiny.kill(process)
    else:  # as soon as a further step is done: evaluations and saves come next
      steps = tiny.last_row(workdir)
      while tiny.last_row(workdir) == steps and process.poll() is None:
        time.sleep(0.001)
      tiny.kill(process)
    if process.returncode == 0:
      break
  assert process.returncode == 0
  assert inside >= 2
  tiny.assert_same_run(tmp_path / "whole", workdir, STEPS)
  again = tiny.train(config, workdir, cache=cache)
  assert (
    tiny.final_of(again.stdout)["accuracy_after"] == tiny.final_of(done.stdout)["accuracy_after"]
  )
