"""The worked example of docs/add_a_method.md does what the page says."""

import ast
import importlib
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import cli
from grpo_jax import methods
from grpo_jax.train import setup
from grpo_jax.types import Fwd, Rollouts, rows_of

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/add_a_method.md").read_text()


def block(heading: str) -> str:
  """The first Python block after the line that begins with `heading`."""
  found = re.search(rf"^{re.escape(heading)}.*?^```python\n(.*?)^```$", PAGE, re.M | re.S)
  assert found, heading
  return found[1]


@pytest.fixture
def raft(tmp_path, monkeypatch):
  """The page's file where it tells a reader to put it."""
  (tmp_path / "raft.py").write_text(block("`grpo_jax/methods/raft.py`"))
  monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
  yield "raft"
  sys.modules.pop("grpo_jax.methods.raft", None)
  vars(methods).pop("raft", None)


@pytest.fixture
def suite(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "tests/methods")
  return importlib.import_module("common_test")


def test_the_example_imitates_the_best_of_each_group(raft):
  method = methods.get(raft)
  reward = jnp.asarray([[1.0, 0.0, 1.0], [2.0, 2.0, 2.0], [0.0, 3.0, jnp.nan]])
  rollouts = Rollouts(
    prompt=jnp.arange(3),
    reward=reward,
    alive=~jnp.isnan(reward),
    correct=jnp.zeros((3, 3), bool),
    truncated=jnp.zeros((3, 3), bool),
    length=jnp.asarray([[1, 2, 3]] * 3),
  )
  mask = np.arange(3)[None] < np.asarray([1, 2, 3] * 3)[:, None]
  batch = rows_of(rollouts, jnp.zeros((9, 3), jnp.int32), jnp.asarray(mask))
  credit = method.credit((), rollouts, batch)
  logp = jnp.linspace(-3, -1, 27).reshape(9, 3)
  loss, _ = method.loss(Fwd(logp=logp), batch, credit)
  chosen = [(r, t) for r in (0, 2, 7) for t in range(mask[r].sum())]
  assert float(loss) == pytest.approx(-np.mean([float(logp[r, t]) for r, t in chosen]))


def test_the_entry_of_the_page_passes_the_shared_suite(raft, suite):
  cases = vars(importlib.import_module("cases"))
  case = eval(block("In `CASES`").strip().rstrip(","), cases)
  ran = 0
  for test in list(vars(suite).values()):
    marks = getattr(test, "pytestmark", [])
    of_cases = [m.args[1] for m in marks if m.args[:1] == ("case",)]
    # As many properties as REINFORCE has: like it, RAFT reduces to no other method.
    if of_cases and any(c.name == "reinforce" for c in of_cases[0]):
      test(case)
      ran += 1
  assert ran >= 12


def test_the_config_of_the_page_names_the_method_and_has_a_debug_variant(tmp_path, raft):
  path = tmp_path / "config_raft.py"
  path.write_text(block("`configs/raft.py`"))
  config, _ = cli.load_config(f"{path}:debug")
  assert config.method == raft and config.steps == 2
  setup.make_method(config)


def test_every_file_that_the_page_names_exists():
  named = set(re.findall(r"`((?:grpo_jax|tests|configs|notebooks|core)/[\w/]+\.\w+)`", PAGE))
  made_by_reader = {"grpo_jax/methods/raft.py", "configs/raft.py"}
  for name in named - made_by_reader:
    assert (ROOT / name).exists() or (ROOT / "grpo_jax" / name).exists(), name


def test_every_python_block_is_one_of_the_three_that_are_run():
  blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
  assert len(blocks) == 3
  for text in blocks:
    ast.parse(text)
