"""Two processes of a real launcher train one job, and what they leave is that of one process."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import tiny

from grpo_jax.errors import UserError
from grpo_jax.train import launch

MPIRUN = shutil.which("mpirun")
needs_mpirun = pytest.mark.skipif(MPIRUN is None, reason="needs Open MPI: apt install openmpi-bin")


def together(config, workdir, *changes, cache=None, processes=2, devices=2):
  command = [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "-n", str(processes)]
  environment = tiny.environment(cache, devices)
  for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
    environment.pop(name, None)
  return subprocess.run(
    command + tiny.command(config, workdir, *changes),
    capture_output=True,
    text=True,
    cwd=tiny.ROOT,
    env=environment,
    timeout=540,
  )


def close(a, b, rtol=1e-5):
  scale = max(float(np.max(np.abs(a))), 1e-30)
  np.testing.assert_allclose(b, a, atol=rtol * scale, rtol=0)


@pytest.mark.slow
@needs_mpirun
def test_two_processes_train_save_and_resume_one_job_as_one_process_does(tmp_path):
  model = tiny.save_model(tmp_path / "model")
  # KL to a reference needs its pass too; the parameters are split over both processes.
  changes = {"mesh.data": 2, "mesh.fsdp": 2, "method_args.beta_kl": 0.05, "eval.every": 2}
  c = tiny.make_config(model, **changes)
  config, cache = tiny.write_config(tmp_path / "c.py", c), tmp_path / "cache"
  half = together(config, tmp_path / "two", "--config.steps=2", cache=cache)
  assert half.returncode == 0, half.stderr
  assert tiny.saved_steps(tmp_path / "two") == [2]
  two = together(config, tmp_path / "two", cache=cache)
  assert two.returncode == 0, two.stderr
  assert "resumed after step 2" in two.stdout
  assert two.stdout.count("plan:") == two.stdout.count("final:") == 1  # by process 0 alone
  assert two.stderr.count("step 3/4") == 1

  one = tiny.train(config, tmp_path / "one", cache=cache, devices=4)
  assert one.returncode == 0, one.stderr
  a, b = tiny.record(tmp_path / "one"), tiny.record(tmp_path / "two")
  trained = lambda record: [row for row in record["metrics"] if row["kind"] == "train"]
  assert [row["step"] for row in trained(b)] == [1, 2, 3, 4]
  for row, other in zip(trained(a), trained(b), strict=True):
    assert row["reward"] == other["reward"] and row["length"] == other["length"]  # same samples
    for name in ("loss", "grad_norm", "kl", "entropy"):
      np.testing.assert_allclose(other[name], row[name], rtol=1e-4, atol=1e-6, err_msg=name)
  assert a["final"] == b["final"]
  (arrays, host), (others, other) = (tiny.saved(tmp_path / n, 4) for n in ("one", "two"))
  assert host == other
  for name in arrays:
    close(arrays[name], others[name], 1e-4 if "opt_state" in name else 1e-5)
  texts = lambda w: [
    [
      [sample["text"] for sample in group["samples"]]
      for group in map(json.loads, text.splitlines())
    ]
    for _, text in sorted(tiny.record(w)["files"].items())
    if "samples" in text
  ]
  assert texts(tmp_path / "one") == texts(tmp_path / "two")

  again = together(config, tmp_path / "two", cache=cache)  # finished: one line, once
  assert again.returncode == 0 and again.stdout.count("final:") == 1
  # A job of two processes goes on in one.
  more = tiny.train(config, tmp_path / "two", "--config.steps=5", cache=cache, devices=4)
  assert more.returncode == 0 and "resumed after step 4" in more.stdout, more.stderr


@pytest.mark.slow
@needs_mpirun
def test_an_error_ends_all_processes_with_exit_code_2(tmp_path):
  model = tiny.save_model(tmp_path / "model")
  config = tiny.write_config(tmp_path / "c.py", tiny.make_config(model))
  done = together(config, tmp_path / "w", "--config.batch.prompts=6")
  assert done.returncode == 2
  assert "must be a multiple of mesh.data * mesh.fsdp = 4" in done.stderr
  assert not list((tmp_path / "w").glob("*"))


# ---- which launchers -----------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
  for name in (*launch.LAUNCHED, *launch.COUNTS):
    monkeypatch.delenv(name, raising=False)
  made = []
  monkeypatch.setattr(launch.jax.distributed, "initialize", lambda: made.append(dict(os.environ)))
  monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)  # no libtpu
  return made


def test_a_run_started_by_hand_waits_for_nobody(calls, monkeypatch):
  monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # a shell in a pod
  monkeypatch.setenv("SLURM_JOB_ID", "7")  # a shell of salloc
  assert not launch.join_hosts() and not calls


@pytest.mark.parametrize("name", launch.LAUNCHED)
def test_every_launcher_is_joined(calls, monkeypatch, name):
  monkeypatch.setenv(name, "1")
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
  assert launch.join_hosts() and len(calls) == 1


def test_processes_of_a_launcher_that_jax_does_not_know_do_not_train_alone(calls, monkeypatch):
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # Open MPI 5 sets this, and no hnp_uri
  with pytest.raises(UserError, match="a launcher started 2 processes, but jax does not know it"):
    launch.join_hosts()


def test_a_launcher_that_jax_cannot_join_is_one_line(calls, monkeypatch):
  monkeypatch.setenv("SLURM_STEP_NODELIST", "a")

  def initialize():
    raise ValueError("Number of processes must be defined.")

  monkeypatch.setattr(launch.jax.distributed, "initialize", initialize)
  with pytest.raises(UserError, match="jax.distributed: Number of processes must be defined"):
    launch.join_hosts()
