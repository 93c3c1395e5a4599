"""T2MIR-AD on a simulator of the host: configs, histories on disk, the loop, the evidence."""

import json

import numpy as np
import pytest

from configs import t2mir
from experiments import histories, train
from experiments.common import cli
from experiments.t2mir import mujoco
from grpo_jax.envs import simulator
from grpo_jax.train import in_context as in_context_loop

HAS = simulator.importlib.util.find_spec("mujoco") is not None
real = pytest.mark.skipif(not HAS, reason="MuJoCo is not installed: pip install 'grpo-jax[mujoco]'")
VARIANTS = [f"{family}{more}" for family in t2mir.ON_MUJOCO
            for more in ("", ",dense", ",paper", ",debug")]  # fmt: skip


@pytest.fixture
def faked(monkeypatch):
  fields = {"body_mass": (8,), "body_inertia": (8, 3), "dof_damping": (9,), "geom_friction": (8, 3)}

  def advance(states, acted, params):
    after = 0.9 * states
    after[:, 0] = states[:, 0] + 0.1 * acted.mean(axis=1)
    return after

  made = simulator.Simulator(
    rest=np.zeros(18, np.float32),
    positions=9,
    actions=6,
    dt=0.05,
    fields={name: np.ones(shape) for name, shape in fields.items()},
    advance=advance,
  )
  monkeypatch.setattr(simulator, "load", lambda *args, **kwargs: made)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_builds_and_the_dense_arm_has_no_experts(faked, variant):
  c = cli.load_config(f"configs/t2mir.py:{variant}")[0]
  layout, method, config, plan = in_context_loop.parts_of(c)
  assert layout.kind == "episodes" and layout.family.name == variant.split(",")[0]
  assert config.moe is not None and (config.moe.task_experts == 0) == ("dense" in variant)
  assert plan.exam.episodes * layout.family.horizon >= layout.steps  # the window fills


def test_tokens_that_want_an_optimal_action_are_refused_before_anything_is_made(
  faked, capsys, tmp_path
):
  flags = ["--config=configs/t2mir.py:cheetah_vel,debug", "--config.tokens=split"]
  assert train.main([*flags, f"--workdir={tmp_path}/run"]) == 2
  error = capsys.readouterr().err
  assert "cheetah_vel knows no optimal action; use tokens='episodes'" in error
  assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_config_without_histories_is_refused(capsys, tmp_path):
  assert histories.main(["--config=configs/dpt.py:debug", f"--workdir={tmp_path}/made"]) == 2
  assert "data.histories: missing" in capsys.readouterr().err


@pytest.mark.slow
def test_histories_on_disk_train_a_model_that_is_examined_on_the_simulator(faked, tmp_path):
  pytest.importorskip("tensorflow_datasets")
  c = t2mir.get_config("cheetah_vel,debug")
  made = histories.make(c, tmp_path / "made", lambda _: None)
  assert len(made["returns"]["train"]) == 4  # as many tenths as episodes
  c.data.histories.path = made["path"]
  final = in_context_loop.run(c, tmp_path / "run", lambda _: None)
  assert {"return", "first_return"} <= set(final) and not {"best", "right"} & set(final)
  last = json.loads((tmp_path / "run/exam/step_000004.json").read_text())
  assert np.shape(last["curves"]["return"]) == (2, 2)
  assert json.loads((tmp_path / "run/oracles.json").read_text())["best"] is None
  page = (tmp_path / "run/report.html").read_text()
  assert page.count("<svg") == 2 and "optimal" not in page


@real
@pytest.mark.slow
def test_a_run_on_mujoco_leaves_marks(tmp_path):
  for family in t2mir.ON_MUJOCO:
    final = in_context_loop.run(
      t2mir.get_config(f"{family},debug"), tmp_path / family, lambda _: None
    )
    assert np.isfinite(final["return"]) and final["return_min"] < final["return_max"]


def test_statements_compare_the_arms_seed_by_seed():
  full = np.asarray([[0.0, 0.2, 0.4], [0.1, 0.3, 0.5], [0.0, 0.1, 0.6]])
  found = mujoco.statements({"full": full, "dense": full - 0.1})
  assert [s.y.tolist() for s in found][1] == [0, 0, 0]
  np.testing.assert_allclose(found[0].x - found[0].y, full[:, 2] - full[:, 0])
  np.testing.assert_allclose(found[2].x - found[2].y, 0.1)
