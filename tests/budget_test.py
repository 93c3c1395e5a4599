"""The budget of the tests counts every test once, names what is over, and fails a fat worker."""

import re
import subprocess
import sys
from pathlib import Path

import budget
import pytest
from budget import GIB, Limits, Process

SLUGS = frozenset({"igpo", "grpo", "rank_grpo"})
HERE = Path(__file__).parent


def account(peak=GIB, free=(), **seconds):
  return Process("gw0", seconds, list(free), total=sum(seconds.values()), peak=peak, peak_at="t")


@pytest.mark.parametrize(
  "test, folder, payer",
  [
    ("tests/layers_test.py::test_a", "tests", None),
    ("tests/core/groups_test.py::test_a[igpo]", "tests/core", None),
    ("tests/methods/igpo_test.py::test_a", "tests/methods", ("paper", "igpo")),
    ("tests/methods/common_test.py::t[igpo-n=3]", "tests/methods", ("case", "igpo-n=3")),
    ("tests/methods/common_test.py::t[igpo]", "tests/methods", ("case", "igpo")),
    ("tests/methods/registry_test.py::test_a[wrong]", "tests/methods", None),
  ],
)
def test_a_test_is_paid_by_its_folder_and_by_its_paper_or_case(test, folder, payer):
  assert (budget.folder(test), budget.payer(test, SLUGS)) == (folder, payer)


def test_what_is_over_is_named_and_what_is_far_over_fails():
  papers = {f"tests/methods/igpo_test.py::test_{i}": 4.0 for i in range(2)}
  over, failed = budget.judge([account(**papers, a=9.0, b=33.0, c=8.0)], Limits(), SLUGS)
  assert over == ["a costs 9.0 CPU s of 8", "paper igpo costs 8.0 CPU s of 6"]
  assert failed == ["b costs 33.0 CPU s of 8"]
  over, failed = budget.judge([account(a=3.0), account(b=4.0)], Limits(total=5), SLUGS)
  assert (over, failed) == (["the run costs 7.0 CPU s of 5"], [])


def test_memory_fails_at_its_limit_and_slow_tests_have_no_seconds():
  fat = account(peak=int(3.5 * GIB), a=1.0)
  assert budget.judge([account(), fat], Limits(), SLUGS) == (
    [],
    ["gw0 held 3.50 GiB of 3, most in t"],
  )
  assert budget.judge([account(free=["a"], a=5000.0)], Limits(), SLUGS) == ([], [])


def test_the_shares_of_the_table_are_of_all_seconds_with_start_and_collection():
  p = account(**{"tests/core/x.py::a": 3.0, "tests/core/y.py::b": 4.0, "z.py::c": 1})
  p.total = 10.0
  rows = {line[:44].strip(): line[44:].split() for line in budget.report([p])}
  assert rows["tests/core"] == ["7.0", "2", "70.0%"]
  assert rows["start and collection"] == ["2.0", "20.0%"]
  assert rows["all"] == ["10.0", "3", "100.0%"]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_run_counts_children_and_threads_of_its_processes_and_fails_by_its_exit(
  tmp_path, workers
):
  (tmp_path / "conftest.py").write_text(
    "import budget\n"
    "def pytest_addoption(parser): budget.addoption(parser)\n"
    "def pytest_configure(config): budget.configure(config, budget.Limits(test=0.3, worker=1e-3))\n"
  )
  (tmp_path / "spin_test.py").write_text(
    "import subprocess, sys, threading, time\n"
    "WORK = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
    "def test_child(): subprocess.run([sys.executable, '-c', WORK], check=True)\n"
    "def spin():\n"
    "  end = time.thread_time() + 0.5\n"
    "  while time.thread_time() < end: pass\n"
    "def test_thread():\n"
    "  t = threading.Thread(target=spin); t.start(); t.join()\n"
    "def test_idle(): time.sleep(0.1)\n"
  )
  command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--budget", *workers]
  done = subprocess.run(
    [*command, str(tmp_path)],
    cwd=tmp_path,
    env={"PYTHONPATH": str(HERE)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and "3 passed" in done.stdout, done.stdout + done.stderr
  said = re.findall(r"over budget: \S*::(\w+) costs ([\d.]+)", done.stdout)
  assert {name for name, _ in said} == {"test_child", "test_thread"}
  assert all(0.45 < float(seconds) < 0.8 for _, seconds in said)
  fat = re.findall(r"BUDGET FAILED: (.*) held", done.stdout)
  assert sorted(fat) == (["gw0", "gw1"] if workers else ["the process"])


def test_letting_go_frees_what_was_compiled_and_what_is_needed_again_is_compiled_again():
  import jax

  f = jax.jit(lambda x: x + 1)
  f(1.0)
  assert f._cache_size() == 1
  budget.forget()
  assert f._cache_size() == 0 and f(1.0) == 2.0
