"""What the tests cost and what they may cost: CPU seconds by folder, peak memory of every worker.

A pytest plugin that conftest.py loads. Every process that runs tests counts its own CPU seconds,
those of its threads and of children it waited for, per test; workers of xdist hand theirs to the
process that prints. `--budget` (make test) prints the sums and judges them; without it nothing is
said. Memory is a hard limit. Seconds depend on the machine, so what is over its budget is named,
and only what is over four times its budget fails the run. Tests marked `slow` have no budget.

A paper's tests are tests/methods/SLUG_test.py and its cases in the suites there.
"""

import collections
import ctypes
import dataclasses
import gc
import os
import re
import resource
import sys
from pathlib import Path

import pytest

GIB = 2**30
FORGET = 1.5 * GIB  # a process that holds more lets its compiled programs go
TOO_MUCH = 4  # times a budget in seconds: beyond what another machine explains
FREE_MARKS = {"slow", "oracle", "aot", "gpu"}


@dataclasses.dataclass(frozen=True)
class Limits:
  total: float = 1800.0  # CPU seconds
  paper: float = 6.0  # its own file
  case: float = 5.0  # one entry of CASES in all suites
  test: float = 8.0
  worker: float = 3.0  # GiB


@dataclasses.dataclass
class Process:
  """One process's account; plain values, as it goes through xdist's channel."""

  name: str
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # by test
  free: list[str] = dataclasses.field(default_factory=list)  # tests without a budget
  total: float = 0.0  # with imports and collection
  peak: int = 0  # bytes
  peak_at: str = ""  # the test that raised it last
  forgot: int = 0  # times


def cpu_seconds() -> float:
  t = os.times()
  return t.user + t.system + t.children_user + t.children_system


def peak_bytes() -> int:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def held_bytes() -> int:
  """Resident memory; where /proc is missing the peak stands in for it."""
  try:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
  except OSError:
    return peak_bytes()


def forget() -> None:
  """Lets go of every compiled program and hands the free memory back to the system."""
  import jax

  jax.clear_caches()
  gc.collect()
  if sys.platform == "linux":
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)


def folder(test: str) -> str:
  parts = test.split("::")[0].split("/")
  return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def payer(test: str, slugs: frozenset[str]) -> tuple[str, str] | None:
  """("paper", slug) of a paper's own file, ("case", label) of a suite of methods, or None."""
  path, _, rest = test.partition("::")
  if "/methods/" not in path:
    return None
  name = re.sub(r"_test\.py$", "", path.rsplit("/", 1)[-1])
  if name in slugs:
    return "paper", name
  label = re.search(r"\[(.*)\]$", rest)
  return ("case", label[1]) if label and label[1].startswith(tuple(slugs)) else None


def sums(pairs) -> dict[str, tuple[float, int]]:
  """{key: (seconds, tests)}, the dearest first."""
  out = collections.defaultdict(lambda: (0.0, 0))
  for key, seconds in pairs:
    out[key] = (out[key][0] + seconds, out[key][1] + 1)
  return dict(sorted(out.items(), key=lambda kv: -kv[1][0]))


def table(title: str, rows: dict[str, tuple[float, int]], whole: float) -> list[str]:
  lines = [f"{title:<44}{'CPU s':>9}{'tests':>7}{'share':>8}"]
  for key, (seconds, tests) in rows.items():
    lines.append(f"{key:<44}{seconds:>9.1f}{tests or '':>7}{seconds / max(whole, 1e-9):>8.1%}")
  return lines


def judge(processes, limits: Limits, slugs) -> tuple[list[str], list[str]]:
  """(over the budget, over what the run may cost): one line each."""
  over, failed = [], []

  def hold(what: str, seconds: float, limit: float):
    if seconds > limit:
      line = f"{what} costs {seconds:.1f} CPU s of {limit:.0f}"
      (failed if seconds > TOO_MUCH * limit else over).append(line)

  free = {test for p in processes for test in p.free}
  each = [(t, s) for p in processes for t, s in p.seconds.items() if t not in free]
  for test, seconds in sorted(each, key=lambda x: -x[1]):
    hold(test, seconds, limits.test)
  paid = [(who, s) for t, s in each if (who := payer(t, slugs))]
  for (kind, who), (seconds, _) in sums(paid).items():
    hold(f"{kind} {who}", seconds, getattr(limits, kind))
  if not free:
    hold("the run", sum(p.total for p in processes), limits.total)
  for p in processes:
    if p.peak > limits.worker * GIB:
      failed.append(
        f"{p.name} held {p.peak / GIB:.2f} GiB of {limits.worker:g}, most in {p.peak_at}"
      )
  return over, failed


def report(processes, files: int = 12) -> list[str]:
  whole = sum(p.total for p in processes)
  each = [(t, s) for p in processes for t, s in p.seconds.items()]
  rest = whole - sum(s for _, s in each)
  by_folder = sums((folder(t), s) for t, s in each) | {"start and collection": (rest, 0)}
  by_file = sums((t.split("::")[0], s) for t, s in each)
  lines = table("budget by folder", by_folder, whole)
  lines += [*table("", {"all": (whole, len(each))}, whole)[1:], ""]
  lines += [*table("dearest files", dict(list(by_file.items())[:files]), whole), ""]
  for p in processes:
    kept = f"programs let go {p.forgot} times, peak in {p.peak_at}"
    lines.append(f"{p.name}: peak {p.peak / GIB:.2f} GiB, {p.total:.0f} CPU s; {kept}")
  return lines


class Meter:
  """In every process that runs tests."""

  def __init__(self, name: str):
    self.process = Process(name)
    self.ceiling = FORGET

  @pytest.hookimpl(wrapper=True, tryfirst=True)
  def pytest_runtest_protocol(self, item):
    before = cpu_seconds()
    done = yield
    p, test = self.process, item.nodeid
    if peak_bytes() > p.peak:
      p.peak, p.peak_at = peak_bytes(), test
    if held_bytes() > self.ceiling:
      forget()
      p.forgot += 1
      self.ceiling = max(FORGET, held_bytes() + 0.5 * GIB)  # what does not go is no reason to retry
    p.seconds[test] = p.seconds.get(test, 0.0) + cpu_seconds() - before
    if FREE_MARKS & {m.name for m in item.iter_markers()}:
      p.free.append(test)
    return done

  @pytest.hookimpl(trylast=True)
  def pytest_sessionfinish(self, session):
    self.process.total, self.process.peak = cpu_seconds(), max(self.process.peak, peak_bytes())
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
      output["budget"] = dataclasses.asdict(self.process)


class Printer:
  """In the process that talks to the reader."""

  def __init__(self, meter: Meter | None, slugs, limits: Limits):
    self.meter, self.slugs, self.limits = meter, slugs, limits
    self.processes = []
    self.over, self.failed = [], []

  @pytest.hookimpl(optionalhook=True)
  def pytest_testnodedown(self, node, error):
    if "budget" in getattr(node, "workeroutput", {}):
      self.processes.append(Process(**node.workeroutput["budget"]))

  @pytest.hookimpl(trylast=True)
  def pytest_sessionfinish(self, session):
    if self.meter:
      self.processes.append(self.meter.process)
    self.over, self.failed = judge(self.processes, self.limits, self.slugs)
    if self.failed and session.exitstatus == pytest.ExitCode.OK:
      session.exitstatus = pytest.ExitCode.TESTS_FAILED

  def pytest_terminal_summary(self, terminalreporter):
    terminalreporter.section("budget")
    for line in report(self.processes):
      terminalreporter.line(line)
    for line in self.over:
      terminalreporter.line(f"over budget: {line}")
    for line in self.failed:
      terminalreporter.line(f"BUDGET FAILED: {line}", red=True)


def addoption(parser) -> None:
  parser.addoption(
    "--budget", action="store_true", help="print what the tests cost, and fail far over the budget"
  )


def configure(config, limits: Limits = Limits()) -> None:
  worker = getattr(config, "workerinput", None)
  shared = worker is None and config.getoption("numprocesses", None)
  meter = None if shared else Meter(worker["workerid"] if worker else "the process")
  if meter:
    config.pluginmanager.register(meter, "budget-meter")
  if worker is None and config.getoption("budget"):
    methods = Path(__file__).parent.parent / "grpo_jax/methods"
    slugs = frozenset(p.stem for p in methods.rglob("*.py") if p.stem != "__init__")
    config.pluginmanager.register(Printer(meter, slugs, limits), "budget-printer")
