"""Whatever an answer does to a scorer costs its own reward and nothing else."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.verifiers.pool import KINDS, RewardPool


@dataclasses.dataclass(frozen=True)
class Problem:
  id: int = 0
  prompt: str = "3 + 4 ="
  question: str = "3 + 4 ="
  answer: str | None = "7"
  meta: dict = dataclasses.field(default_factory=dict)


HERE = str(pathlib.Path(__file__).parent)
OBEY = ["hostile_rewards:obey"]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
  monkeypatch.syspath_prepend(HERE)


@pytest.fixture(scope="module")
def pool():
  sys.path.insert(0, HERE)
  with RewardPool(OBEY, timeout_s=0.5, memory_mb=128) as made:
    yield made.ready()
  sys.path.remove(HERE)


def score(pool, completions, problem=None, **kwargs):
  return pool.score(completions, [problem or Problem()] * len(completions), **kwargs)


@pytest.mark.parametrize(
  ("harm", "kind"),
  [
    ("loop", "timeout"),
    ("swallow", "timeout"),
    ("grandchild", "timeout"),
    ("memory", "memory"),
    ("hoard", "memory"),
    ("raise", "exception"),
    ("recurse", "exception"),
    ("sys.exit", "exception"),
    ("nan", "exception"),
    ("text", "exception"),
    ("exit", "crash"),
    ("segfault", "crash"),
    ("kill group", "crash"),
  ],
)
def test_harm_scores_zero_is_counted_and_spares_its_neighbours(pool, harm, kind):
  batch = ["7", "8", harm, "7", "8", "7"]
  if kind == "memory":  # a busy machine may need longer than the limit of `pool` to fill it
    with RewardPool(OBEY, timeout_s=30.0, memory_mb=128) as patient:
      out = score(patient, batch)
  else:
    start = time.monotonic()
    out = score(pool, batch)
    assert time.monotonic() - start < 3.0
  np.testing.assert_array_equal(out.reward, np.float32([1, 0, 0, 1, 0, 1]))
  np.testing.assert_array_equal(out.correct, [True, False, False, True, False, True])
  assert out.alive.all()
  assert out.failure == (None, None, kind, None, None, None)
  assert out.failed == {k: int(k == kind) for k in KINDS}
  assert len(out.errors) == 1


def test_many_harms_in_one_batch_are_each_counted(pool):
  harms = ["loop", "exit", "7", "memory", "raise", "segfault", "7", "raise", "exit"]
  out = score(pool, harms)
  assert out.failed == {"timeout": 1, "memory": 1, "exception": 2, "crash": 3}
  np.testing.assert_array_equal(np.flatnonzero(out.reward), [2, 6])
  assert score(pool, ["7"]).reward[0] == 1.0


def test_a_timed_out_answer_costs_about_the_limit(pool):
  start = time.monotonic()
  score(pool, ["loop", "loop", *["7"] * 30])
  assert 1.0 <= time.monotonic() - start < 1.8


def test_what_scorers_write_to_open_files_cannot_forge_the_reward_of_others(pool):
  out = score(pool, ["8", "scribble", "8", "7"])
  assert out.reward[0] == 0.0 and out.reward[2] == 0.0
  assert score(pool, ["7", "8"]).reward.tolist() == [1.0, 0.0]


def test_printing_does_not_disturb_the_replies(pool):
  assert score(pool, ["print", "7"]).reward.tolist() == [0.0, 1.0]


def test_reward_processes_load_neither_jax_nor_numpy(pool):
  assert score(pool, ["modules"]).reward[0] == 0.0


def test_killing_the_server_loses_the_batch_but_not_the_run(pool):
  out = score(pool, ["7", "kill server"])
  assert out.reward.tolist() == [0.0, 0.0] and out.failed["crash"] == 2
  assert score(pool, ["7"]).reward[0] == 1.0


def test_none_is_left_out_of_the_sum_and_all_none_is_not_alive(pool):
  out = score(pool, ["none", "7"])
  assert out.alive.tolist() == [False, True]
  assert out.reward.tolist() == [0.0, 1.0]
  assert np.isnan(out.parts[0, 0]) and not out.correct[0]


@pytest.mark.parametrize("answer", ["9**9**9**9", "(" * 10**6, "[" * 10**6, "'9'*10**11", "1/0"])
def test_hostile_text_reaching_an_evaluating_scorer_scores_zero(answer):
  with RewardPool(["hostile_rewards:evaluates"], timeout_s=0.4, memory_mb=256) as pool:
    out = score(pool, ["3+4", answer, "3 + 4"])
  assert out.reward.tolist() == [1.0, 0.0, 1.0]
  assert sum(out.failed.values()) == 1


def test_catastrophic_regular_expression_times_out():
  with RewardPool([{"name": "format", "args": {"pattern": "(a+)+b"}}], timeout_s=0.3) as pool:
    out = score(pool, ["aab", "a" * 60, "aab"])
  assert out.reward.tolist() == [1.0, 0.0, 1.0] and out.failed["timeout"] == 1


def test_parts_are_weighted_and_the_verdict_is_the_first_that_judges_correctness():
  spec = [
    {"name": "format", "weight": 0.25, "args": {"pattern": ".*"}},
    {"name": "exact", "weight": 2.0},
    {"name": "length", "weight": 1.0, "args": {"max_tokens": 10, "soft_tokens": 4}},
    {"name": "hostile_rewards:half", "weight": -1.0, "args": {"value": 0.125}},
    {"name": "math", "sources": ["other"]},
  ]
  with RewardPool(spec) as pool:
    out = score(pool, ["7", "8", "7"], tokens=[6, 8, 11])
    assert pool.names[3] == "hostile_rewards:half"
  expected = np.float32([[1, 1, 0, 0.125, np.nan], [1, 0, -0.5, 0.125, np.nan]])
  np.testing.assert_array_equal(out.parts[:2], expected)
  np.testing.assert_allclose(out.reward, [2.125, -0.375, 1.125], rtol=0, atol=1e-6)
  assert out.correct.tolist() == [True, False, True]


def test_workers_give_the_scores_of_one_worker_in_the_same_order():
  completions = ["7" if i % 3 else "8" for i in range(100)]
  completions[50] = "exit"
  with RewardPool(OBEY, workers=3) as many, RewardPool(OBEY) as one:
    a, b = score(many, completions), score(one, completions)
  np.testing.assert_array_equal(a.reward, b.reward)
  assert a.failure == b.failure


def test_start_returns_at_once_and_a_warm_batch_takes_milliseconds():
  with RewardPool(["exact"]) as pool:
    start = time.monotonic()
    pool.start()
    assert time.monotonic() - start < 0.2
    problems = [Problem(id=i // 16) for i in range(128)]
    pool.score(["7"] * 128, problems)
    times = []
    for _ in range(5):
      start = time.monotonic()
      out = pool.score(["7"] * 128, problems)
      times.append(time.monotonic() - start)
    assert min(times) < 0.05 and out.reward.sum() == 128


def test_megabytes_of_text_pass_through():
  with RewardPool(["exact"], memory_mb=256) as pool:
    out = score(pool, ["x" * 2**20] * 8 + ["7"])
  assert out.reward.tolist() == [0.0] * 8 + [1.0]


def test_an_empty_batch_scores_to_empty_arrays(pool):
  out = score(pool, [])
  assert out.reward.shape == (0,) and out.parts.shape == (0, 1)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    (["exat"], "reward.parts.*did you mean 'exact'"),
    ([{"name": "exact", "wieght": 1}], "did you mean 'weight'"),
    ([], "at least one part"),
    ([{"name": "exact", "weight": float("nan")}], "finite"),
    ([{"name": "exact", "args": {"case_fold": True}}], "did you mean 'casefold'"),
    ([{"name": "length"}], "max_tokens"),
    (["no_such_module:f"], "cannot import"),
    (["hostile_rewards:missing"], "cannot import"),
    (["hostile_rewards:not_a_function"], "not a function"),
  ],
)
def test_a_bad_part_is_one_clear_line(spec, message):
  with pytest.raises(UserError, match=message) as caught, RewardPool(spec) as pool:
    pool.ready()
  assert "\n" not in str(caught.value)


def _alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  with open(f"/proc/{pid}/stat") as f:
    return f.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
@pytest.mark.parametrize("busy", [False, True])
def test_no_process_outlives_a_closed_pool(busy):
  pool = RewardPool(OBEY, workers=2, timeout_s=30.0).ready()
  score(pool, ["7", "7"])
  server = pool._process.pid
  children = pathlib.Path(f"/proc/{server}/task/{server}/children").read_text().split()
  assert children
  if busy:
    pool.submit(["loop", "loop"], [Problem(), Problem()])
    time.sleep(0.2)
    children = pathlib.Path(f"/proc/{server}/task/{server}/children").read_text().split()
  start = time.monotonic()
  pool.close()
  assert time.monotonic() - start < 3.0
  assert not any(_alive(int(pid)) for pid in [server, *children])


@pytest.mark.parametrize("end", ["", "del pool", "import os, signal; os.kill(os.getpid(), 9)"])
def test_a_script_that_forgets_to_close_leaves_nothing_behind(tmp_path, end):
  """As `python -m package.module`: the main module must not be imported again by the processes."""
  (tmp_path / "trainer.py").write_text(
    "print('imported', flush=True)\n"
    "from grpo_jax.verifiers.pool import RewardPool\n"
    "from types import SimpleNamespace as P\n"
    "pool = RewardPool(['exact']).start()\n"
    "out = pool.score(['7'], [P(id=0, prompt='', question='', answer='7', meta={})])\n"
    "print(out.reward, pool._process.pid, flush=True)\n" + end
  )
  path = os.pathsep.join([str(tmp_path), *[p for p in sys.path if p]])
  done = subprocess.run(
    [sys.executable, "-W", "error", "-m", "trainer"],
    env=os.environ | {"PYTHONPATH": path},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == (-9 if "kill" in end else 0)
  assert done.stderr == ""
  imported, result = done.stdout.splitlines()
  assert imported == "imported" and result.startswith("[1.]")
  for _ in range(100):
    if not _alive(int(result.split()[-1])):
      return
    time.sleep(0.02)
  pytest.fail("the reward process lives on")
