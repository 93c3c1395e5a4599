"""Every config loads, sets only what is read, and has a :debug variant of under a minute."""

import ast
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base_methods, common
from experiments import train
from experiments.common import cli
from grpo_jax import data, methods, sharding
from grpo_jax.train import setup

ROOT = Path(__file__).parent.parent
LANGUAGE = ("llm", "offline")  # loops with common.language_model(); others have their own tests
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem[0] != "_")
CONFIGS.remove("common")
CONFIGS = [c for c in CONFIGS if cli.load_config(f"configs/{c}.py")[0].get("loop") in LANGUAGE]
VARIANTS = {"base_methods": tuple(base_methods.ARGS)}  # names that may stand before ",debug"
SPECS = [
  f"configs/{name}.py" + (f":{variant}" if variant else "")
  for name in CONFIGS
  for variant in ("", *VARIANTS.get(name, ()))
]
DEBUG = [spec + (",debug" if ":" in spec else ":debug") for spec in SPECS]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)


def leaves(c, prefix=""):
  """Paths of all fields, `data` and `method_args` as one each: their readers check them."""
  for key, value in c.items():
    if isinstance(value, ConfigDict) and prefix + key not in ("data", "method_args"):
      yield from leaves(value, f"{prefix}{key}.")
    else:
      yield prefix + key


@pytest.mark.parametrize("spec", [*SPECS, *DEBUG])
def test_a_config_loads_and_its_fields_and_method_pass_the_checks_of_a_run(spec):
  c, _ = cli.load_config(spec)
  assert set(leaves(c)) == set(leaves(common.language_model()))
  setup.check(c)
  setup.make_method(c)
  c = c.copy_and_resolve_references()
  with c.unlocked():
    c.data.size, c.data.heldout = 60, 20  # few problems: the keys are what is checked
  assert data.load(c.data.to_dict(), render=str).train


@pytest.mark.parametrize("spec", DEBUG)
def test_a_debug_variant_changes_the_size_and_nothing_else(spec):
  c, debug = (
    cli.load_config(s)[0] for s in (spec.replace(",debug", "").replace(":debug", ""), spec)
  )
  changed = {k for k in leaves(c) if _get(c, k) != _get(debug, k)}
  assert changed <= {"steps", "batch.prompts", "batch.group", "eval.problems", "eval.batch"}
  assert debug.steps <= 2 and debug.batch.prompts * debug.batch.group <= 16


def _get(c, path):
  for key in path.split("."):
    c = c[key]
  return c


def reads(*folders: str) -> set[str]:
  """Names that stand as .NAME in the sources: c.batch.group reads "group"."""
  files = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
  trees = [ast.parse(p.read_text()) for p in files]
  return {n.attr for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def test_every_field_of_the_defaults_is_read_by_the_loops():
  read = reads("grpo_jax/train", "grpo_jax/run")
  unread = [path for path in leaves(common.language_model()) if path.split(".")[-1] not in read]
  # The mesh is read as a whole: its axes are checked by make_mesh.
  assert unread == ["mesh.fsdp", "mesh.tensor"]
  assert set(common.language_model().mesh.keys()) == set(sharding.AXES)


@pytest.mark.parametrize("field", ["batch.promts", "stpes", "optimizer.warm_up"])
def test_a_config_that_sets_a_field_that_nothing_reads_is_one_line(tmp_path, capsys, field):
  path = tmp_path / "c.py"
  path.write_text(
    "from configs import common\n\n\n"
    f"def get_config():\n  c = common.language_model()\n  c.{field} = 3\n  return c\n"
  )
  assert train.main([f"--config={path}", f"--workdir={tmp_path}/run"]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "Did you mean" in error and field.split(".")[-1] in error
  assert len(error) < 500 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("configs/sft.py:debgu", "variant: unknown name 'debgu'; did you mean 'debug'?"),
    ("configs/dpo.py:small", "variant: unknown name 'small'; known: debug"),
    ("configs/quickstart.py:Debug", "did you mean 'debug'?"),
    ("configs/base_methods.py:pppo,debug", "variant: unknown name 'pppo'; did you mean 'ppo'?"),
  ],
)
def test_a_misspelt_variant_is_one_line_that_names_the_nearest(capsys, tmp_path, spec, message):
  assert train.main([f"--config={spec}", f"--workdir={tmp_path}/run"]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "run").exists()


def test_every_base_method_has_a_config():
  given = {"sft", "dpo"}
  base = {p.stem for p in (ROOT / "grpo_jax/methods/base").glob("*.py")} - {"__init__"}
  assert set(base_methods.ARGS) == base - given and given <= set(CONFIGS)
  for name in base_methods.ARGS:
    assert cli.load_config(f"configs/base_methods.py:{name}")[0].method == name
    assert name in methods.names()


@pytest.mark.slow
@pytest.mark.parametrize("spec", DEBUG)
def test_a_debug_variant_runs_in_a_minute_of_two_cores_with_finite_numbers(spec, tmp_path):
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = subprocess.run(
    [sys.executable, "-m", "experiments.train", f"--config={spec}", f"--workdir={tmp_path}/run"],
    capture_output=True,
    text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
  )
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  assert done.returncode == 0, done.stderr
  final = json.loads(done.stdout.strip().splitlines()[-1].removeprefix("final: "))
  assert 0 <= final["accuracy_before"] <= 1 and final["steps"] == 2
  # Processor time: what a minute on two cores has, whatever else the machine is doing.
  assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120
  rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert not any("nonfinite" in row for row in rows)
  trained = [row for row in rows if row["kind"] == "train"]
  assert len(trained) == 2 and all(row.get("logp_gap", 0) < 1e-4 for row in trained)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.py")), ids=lambda p: p.stem)
def test_the_head_of_a_config_says_paper_cost_and_result(path):
  if path.stem in ("__init__", "common"):
    return
  head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
  said = dict(re.findall(r"^(paper|cost|result): (\S.*)$", head, re.M))
  assert list(said) == ["paper", "cost", "result"], "the last lines of the head, in this order"
  assert re.search(r"\b(hours?|minutes?|min|seconds?)\b|not measured", said["cost"])
  papers = (ROOT / "experiments/papers.tsv").read_text(encoding="utf-8").splitlines()[1:]
  numbers = {line.split("\t")[0]: line.split("\t")[1] for line in papers}
  number = said["paper"][:2]
  if number.isdigit():
    assert re.sub(r"[-.]", "_", numbers[number]) == path.stem
  for file in re.findall(r"(?:experiments|docs|benchmarks)/[\w./]+\w", said["result"]):
    assert (ROOT / file).exists()
