"""The benchmark's arithmetic, its readers, and small runs of what it times."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import __main__ as cli
from experiments.bench import ours, prefix_attention, record, runner, table, work
from grpo_jax.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = [
  *("--prompt=4", "--new=4", "--prompts=2", "--group=2", "--warmup=1", "--steps=2"),
  *("--hidden=16", "--layers=2", "--heads=2", "--ffn=32", "--vocab=64"),
]


# ---- arithmetic ---------------------------------------------------------------------------------


def visible_pairs(prompt: int, new: int, group: int) -> tuple[int, int]:
  """(positions, pairs) of one shared prompt, by listing what every position sees."""
  rows = [list(range(i + 1)) for i in range(prompt)]
  for g in range(group):
    for t in range(new - 1):  # the last new token is never an input
      rows.append([*range(prompt), *((g, u) for u in range(t + 1))])
  return len(rows), sum(map(len, rows))


@pytest.mark.parametrize("prompt,new,group", [(1, 2, 1), (3, 1, 4), (5, 4, 3)])
def test_positions_and_pairs_equal_a_listing(prompt, new, group):
  size = {"prompts": 2, "group": group, "prompt": prompt, "new": new}
  positions, pairs = visible_pairs(prompt, new, group)
  assert work.positions(**size) == 2 * positions
  assert work.pairs(**size) == 2 * pairs


def test_layer_parameters_are_those_of_the_decoder():
  import jax

  from grpo_jax.models import decoder

  a = record.arguments(TINY)
  init = functools.partial(decoder.init, ours.model_config(a))
  params = jax.eval_shape(init, jax.random.key(0))
  matrices = sum(math.prod(x.shape[1:]) for x in params["layers"].values() if x.ndim == 3)
  assert work.llama(a).layer_params == matrices


def test_default_model_is_the_published_one():
  s = work.llama(record.arguments([]))
  norms = s.hidden * (2 * s.layers + 1)
  assert s.layers * s.layer_params + 2 * s.vocab * s.hidden + norms == 10_490_112


def test_repeated_prompts_cost_g_times_as_much_as_the_prompt_outgrows_the_answer():
  s = work.llama(record.arguments([]))
  ratios = [
    work.repeated(s, prompts=1, group=8, prompt=p, new=32)
    / work.forward(s, prompts=1, group=8, prompt=p, new=32)
    for p in (1, 64, 512, 65536)
  ]
  assert ratios == sorted(ratios)
  assert 1 < ratios[0] < 1.05 and 7.9 < ratios[-1] < 8


def run_of(step, **fields):
  phases = dict.fromkeys(("generate_s", "update_s", "other_s", "cpu_s"), 1.0)
  starts = dict.fromkeys(("first_step_s", "to_10_steps_s", "to_100_steps_s"), 9.0)
  times = {"step_s": step, "step_min_s": step / 2}
  return phases | starts | times | {"peak_mb": 10, "neighbours": 0.0} | fields


def test_ratios_are_of_medians_of_runs_and_of_best_steps():
  mine = table.cell([run_of(1.0), run_of(9.0), run_of(2.0, peak_mb=20)])
  theirs = table.cell([run_of(8.0), run_of(5.0), run_of(6.0, peak_mb=50)])
  assert mine["step_s"] == 2.0 and mine["best_s"] == 0.5 and mine["peak_mb"] == 20
  final = table.final({"grpo_jax": {64: mine}, "trl": {64: theirs}}, {"trl_64": 0.1}, {})
  assert final["trl_64"] == 3.0 and final["trl_64_best"] == 5.0 and final["trl_64_memory"] == 2.5
  assert final["matmul_share_trl_64"] == 0.1


def test_a_framework_that_failed_has_no_ratio_and_does_not_stop_the_table():
  cells = {"grpo_jax": {64: table.cell([run_of(2.0)])}, "trl": {64: table.cell([])}}
  assert table.final(cells, {}, {})["trl_64"] is None
  assert "grpo_jax" in table.steps(cells, {"grpo_jax_64": 0.5})
  assert "trl" not in table.steps(cells, {"grpo_jax_64": 0.5})


def test_share_is_necessary_work_over_what_the_bound_allows():
  assert table.share(50e9, 2.0, 100.0) == 0.25
  assert (
    table.bound(
      [{"large_gflops": 5.0, "model_gflops": 7.0}, {"large_gflops": 6.0} | {"model_gflops": 1.0}]
    )
    == 7.0
  )


def test_a_run_beside_other_processes_is_not_called_quiet():
  good, bad = (table.cell([run_of(1.0), run_of(1.0, neighbours=x)]) for x in (0.02, 0.4))
  assert table.final({"grpo_jax": {64: good, 512: None}}, {}, {})["quiet"]
  assert not table.final({"grpo_jax": {64: good}, "trl": {64: bad}}, {}, {})["quiet"]


# ---- records ------------------------------------------------------------------------------------


def test_summary_is_over_the_steps_after_the_warm_up():
  clock = record.Clock()
  clock.wall, clock.cpu, clock.busy = [50.0, 4.0, 1.0, 2.0, 9.0], [1.0] * 5, [1.0] * 5
  clock.phases = {"generate": [40.0, 3.0, 0.5, 0.5, 8.0]}
  out = record.summary(clock, record.arguments(["--warmup", "2"]))
  assert out["step_s"] == 2.0 and out["step_min_s"] == 1.0 and out["first_step_s"] == 50.0
  assert out["generate_s"] == 0.5 and out["other_s"] == 1.0
  assert out["to_10_steps_s"] == 50 + 9 * 2


def test_neighbours_are_what_others_took_of_all_cores(monkeypatch):
  monkeypatch.setattr(os, "cpu_count", lambda: 2)
  clock = record.Clock()
  clock.wall, clock.cpu, clock.busy = [9.0, 2.0, 2.0], [9.0, 3.0, 3.0], [90.0, 3.5, 4.5]
  out = record.summary(clock, record.arguments(["--warmup", "1"]))
  assert out["neighbours"] == 0.25  # 2 of the 8 processor seconds of two steps


def test_a_phase_that_missed_a_step_is_refused():
  clock = record.Clock()
  clock.wall, clock.cpu, clock.phases = [1.0] * 4, [1.0] * 4, {"update": [1.0] * 3}
  with pytest.raises(ValueError, match="update"):
    record.summary(clock, record.arguments(["--steps", "2"]))


def test_last_json_skips_noise_around_it():
  assert record.last_json('warn\n{"a": 1}\n{"b": 2}\n{not json\nbye') == {"b": 2}
  with pytest.raises(ValueError, match="no line of JSON"):
    record.last_json("{'python': 'dict'}\n")


def test_peak_memory_is_of_this_process_alone():
  """A child's ru_maxrss begins at its parent's resident size; this figure must not."""
  ballast = bytearray(400_000_000)
  ballast[::4096] = b"x" * len(ballast[::4096])
  code = "from experiments.bench.record import peak_mb; print(peak_mb())"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert float(done.stdout) < 200 < record.peak_mb()
  del ballast


# ---- commands -----------------------------------------------------------------------------------


def test_a_missing_environment_is_named(monkeypatch, capsys):
  monkeypatch.delenv("TRL_PYTHON", raising=False)
  assert cli.main(["main", "--only", "trl"]) == 2
  assert "TRL_PYTHON" in capsys.readouterr().err
  assert cli.main(["mian"]) == 2
  assert "mian" in capsys.readouterr().err
  with pytest.raises(UserError, match="--only=vllm"):
    runner.arguments(["--only=vllm"])


def test_a_process_that_fails_is_an_error_entry():
  got = runner.launch(sys.executable, "experiments.bench.no_such", [], dict(os.environ))
  assert "no_such" in got["error"]
  assert "no line" in runner.launch(sys.executable, "this", [], dict(os.environ))["error"]


def test_our_step_runs_with_tiny_arguments_and_agrees_with_its_sampler():
  out = ours.main(TINY)
  assert out["rows"] == 4 and len(out["step_all_s"]) == 2
  assert out["max_logp_gap"] < 1e-5
  assert out["generate_s"] + out["update_s"] <= out["step_s"] * 1.5
  assert set(out) >= {"peak_mb", "cpu_s", "first_step_s", "versions", "load", "params"}
  json.dumps(out)


def test_shared_and_repeated_prompts_give_one_gradient_and_the_formula_s_flops(tmp_path):
  argv = [
    "--prompt",
    "24",
    "--new",
    "8",
    "--group",
    "3",
    "--repeats",
    "1",
    "--hidden",
    "64",
    "--layers",
    "2",
    "--vocab",
    "32",
  ]
  (row,) = prefix_attention.main([*argv, "--layers=2", "--out", str(tmp_path / "x.json")])
  assert row["gradient_gap"] < 1e-5 and row["loss_gap"] < 1e-6
  assert row["compiled_one_layer"] / row["formula_one_layer"] == pytest.approx(1, abs=0.1)
  assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.oracle
@pytest.mark.parametrize(
  "variable,module", [("TRL_PYTHON", "trl_grpo"), ("TUNIX_PYTHON", "tunix_grpo")]
)
def test_a_peer_runs_the_same_step(variable, module):
  python = os.environ.get(variable)
  if not python:
    pytest.skip(f"{variable} is not set")
  env = runner.environment(hugepages=False)
  out = runner.launch(os.path.abspath(python), f"experiments.bench.peers.{module}", TINY, env)
  assert "error" not in out, out
  mine = ours.main(TINY)
  assert (out["params"], out["rows"]) == (mine["params"], mine["rows"])
  assert set(out) >= set(mine) - {"max_logp_gap"}
