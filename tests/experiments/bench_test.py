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
from experiments.bench import (
  compiled,
  in_context,
  ours,
  ours_fused,
  ours_in_context,
  prefix_attention,
  record,
  runner,
  table,
  tiny,
  work,
)
from grpo_jax.errors import UserError

ROOT = Path(__file__).parents[2]
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


SMALL = ["--new=8", "--group=4", "--hidden=64", "--layers=2", "--vocab=32", "--smollm2="]


def test_shared_and_repeated_prompts_give_one_gradient_and_the_formula_s_flops(tmp_path):
  argv = [*SMALL, "--prompt=24", "--repeats=1", "--out", str(tmp_path / "x.json")]
  (row,) = prefix_attention.main(argv)
  assert row["gradient_gap"] < 1e-5 and row["loss_gap"] < 1e-6
  assert row["repeated_rows_at_once"] == 4
  assert row["compiled_one_layer"] / row["formula_one_layer"] == pytest.approx(1, abs=0.1)
  assert row["compiled_one_layer"] / row["explained_one_layer"] == pytest.approx(1, abs=0.03)
  assert (tmp_path / "x.png").stat().st_size > 1000


def test_repeated_rows_a_few_at_a_time_have_the_gradient_of_all_at_once():
  import jax

  from grpo_jax.models import decoder

  a = prefix_attention.arguments([*SMALL, "--prompt=12"])
  config = compiled.config_of(a.small, 20)
  params = decoder.init(config, jax.random.key(0))
  rollouts, _, repeated = prefix_attention.batches(a.vocab, 12, 8, 4)
  found = [compiled.gradient(config, pieces=n)(params, rollouts, repeated) for n in (1, 2, 4)]
  for loss, grads in found[1:]:
    assert float(abs(loss - found[0][0])) < 1e-6
    assert prefix_attention.distance(found[0][1], grads) < 1e-5


def test_as_many_repeated_rows_as_fit_go_at_a_time():
  s = work.SMOLLM2
  counts = [prefix_attention.rows_at_once(s, p, 64, 8) for p in (64, 256, 1024, 4096, 65536)]
  assert counts[0] == 8 and counts[-1] == 1 and counts == sorted(counts, reverse=True)
  assert all(8 % n == 0 for n in counts)


@pytest.mark.parametrize("prompt,new,group,repeated", [(5, 3, 2, False), (300, 2, 3, True)])
def test_pairs_that_xla_makes_are_those_of_the_blocks(prompt, new, group, repeated):
  block, pairs = max(128, -(-prompt // 8)), 0
  for query in range(prompt):
    pairs += min((query // block + 1) * block, prompt)  # keys up to the end of the query's block
  pairs *= group if repeated else 1
  pairs += group * (new - 1) * (prompt + new - 1)
  n, g = (group, 1) if repeated else (1, group)
  made = compiled.explained(work.SMOLLM2, prompt, new, group, repeated)["pairs_made_over_visible"]
  assert made == pytest.approx(pairs / work.pairs(n, g, prompt, new)) and made > 1


def test_cells_of_the_prompt_benchmark_can_be_chosen():
  a = prefix_attention.arguments(["--prompt=", "--smollm2=32x8x2"])
  assert a.cells == [("smollm2", 32, 8, 2)]
  default = prefix_attention.arguments([]).cells
  assert ("small", 4096, 128, 16) in default and ("smollm2", 1024, 64, 8) in default
  for wrong in (["--prompt=", "--smollm2="], ["--smollm2=32x8"], ["--prompt=a"]):
    with pytest.raises(UserError, match="--"):
      prefix_attention.arguments(wrong)


# ---- the small model ----------------------------------------------------------------------------


def ours_params(argv) -> int:
  s = work.llama(record.arguments(argv))
  return s.layers * s.layer_params + 2 * s.vocab * s.hidden + s.hidden * (2 * s.layers + 1)


@pytest.mark.slow
def test_our_fused_loop_runs_the_small_model_s_steps():
  small = ["--prompts=2", "--group=2", "--prompt=4", "--new=4", "--steps=2", "--runs=1"]
  out = ours_fused.main([*TINY, *small])
  assert (out["rows"], out["updates"], out["prompt"], out["new"]) == (4, 2, 4, 4)
  assert len(out["step_all_s"]) == 1 and out["compile_s"] > out["step_s"] > 0
  assert out["params"] == ours_params(TINY)
  with pytest.raises(UserError, match="as many of both"):
    ours_fused.main(["--prompt=4", "--new=5"])


def test_the_fused_loop_is_paid_what_the_peers_are():
  import jax.numpy as jnp
  import numpy as np

  a = record.arguments(tiny.flags(4))
  world = ours_fused.world(a)
  assert (world.prompt, world.answer) == (8, 8) and world.vocab <= a.vocab
  problem = world.problems(0, jnp.arange(1))
  problem = problem.replace(
    tokens=problem.tokens[0], length=problem.length[0], data=problem.data[0]
  )
  ids = np.asarray([5, 9, 2, 60, 33, 3, 1, 0], np.int32)
  verdict = world.score(problem, None, jnp.asarray(ids), jnp.int32(7))
  assert float(verdict.reward) == pytest.approx(ids[:7].mean() / 64) and not verdict.correct


def tiny_run(framework, prompts, step, **fields):
  return run_of(step, framework=framework, prompts=prompts, compile_s=5.0, **fields)


def test_the_small_model_s_ratios_are_seconds_an_update_of_peer_over_ours():
  runs = [tiny_run("grpo_jax", n, 0.5) for n in (32, 4)]
  runs += [tiny_run("trl", 32, 2.0), tiny_run("trl", 32, 4.0), tiny_run("trl", 32, 3.0)]
  runs += [{"framework": "trl", "prompts": 4, "error": "no"}]
  found = tiny.summarize(runs, bound=100.0)
  assert found["final"]["trl_tiny_32"] == 6.0 and found["final"]["trl_tiny_4"] is None
  assert found["final"]["updates_per_s_tiny_32"] == 2.0
  shares = [found["final"][f"matmul_share_{name}_tiny_32"] for name in ("grpo_jax", "trl")]
  assert shares[0] >= shares[1] > 0
  assert "32 x 8  trl" in tiny.lines(found["cells"]) and "4 x 8  trl" not in tiny.lines(
    found["cells"]
  )


def test_a_run_of_parts_leaves_the_whole_run_s_results_alone():
  whole = runner.arguments([])
  assert whole.only == [*runner.PARTS] and whole.out.name == "bench_cpu.json"
  assert runner.arguments(["--only=tiny"]).out.name == "tiny_cpu.json"
  for only in (["--only=trl"], ["--only=tiny,trl"], ["--only=decode"], ["--quick"]):
    assert "results" not in runner.arguments(only).out.parts
  assert runner.arguments(["--only=tiny"]).lengths == [] and whole.lengths == [64, 512]


# ---- in-context learners ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_program_of_many_bandits_runs_in_parts_and_its_logits_are_written(tmp_path):
  import numpy as np

  small = ["--horizon=4", "--hidden=8", "--heads=2", "--layers=1", "--compared=3"]
  argv = [str(tmp_path), *small, "--tasks=6", "--part=3", "--repeats=2"]
  assert ours_in_context.main([*argv, "--export"]) == {"exported": 3}
  contexts = np.load(tmp_path / "contexts.npz")
  assert contexts["logits"].shape == (3, 5, 5) and contexts["action"].shape == (3, 4)
  out = ours_in_context.main(argv)
  assert out["things"] == 6 and len(out["seconds_all"]) == 2 and 0 < out["regret"] < 4
  with pytest.raises(UserError, match="multiple of --part=4"):
    ours_in_context.main([*argv[:-2], "--part=4"])


def test_the_peer_s_ratio_is_against_its_fastest_form():
  row = {"peak_mb": 1, "neighbours": 0.0, "regret": 1.0, "per_cpu_s": 1.0}
  cells = {
    name: row | {"per_s": speed, "per_s_best": speed}
    for name, speed in (("ours, 200", 60.0), ("peer, 200", 3.0), ("peer, one by one", 2.0))
  }
  cells["ours"] = row | {"per_s": 90.0, "per_s_best": 90.0, "compile_s": 5.0}
  runs = [{"gap": 1e-6, "same_arms": 1.0}, {"gap": 2e-6, "same_arms": 1.0}]
  last = in_context.final(cells, runs)
  assert (last["peer_ratio"], last["peer_ratio_200"]) == (30.0, 20.0)
  assert last["peer_ratio_one_by_one"] == 45.0 and last["same_model"] and last["quiet"]
  assert not in_context.final(cells, [{"gap": 1e-3, "same_arms": 0.9}])["same_model"]
  assert not in_context.final(cells, [])["same_model"]


@pytest.mark.oracle
def test_the_peer_of_in_context_learners_is_the_same_model(tmp_path):
  python = os.environ.get("TRL_PYTHON")
  if not python:
    pytest.skip("TRL_PYTHON is not set")
  small = ["--horizon=6", "--hidden=8", "--heads=2", "--layers=2", "--compared=3"]
  ours_in_context.main([str(tmp_path), "--export", *small])
  env = runner.environment(hugepages=False)
  flags = [str(tmp_path), "--heads=2", "--tasks=3", "--repeats=1"]
  out = runner.launch(os.path.abspath(python), "experiments.bench.peers.torch_dpt", flags, env)
  assert out.get("gap", 1) < 1e-5 and out["same_arms"] == 1, out


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
