"""The index of core is whole: every module stands in it, once, and has a test that names it."""

import ast
import importlib
import pkgutil
import re
from collections import Counter
from pathlib import Path

import pytest

from grpo_jax import core

ROOT = Path(__file__).parents[2]
MODULES = sorted(m.name for m in pkgutil.iter_modules(core.__path__) if m.name[0] != "_")
# Modules without tests/core/NAME_test.py: the file that tests them instead.
COVERED = {
  "bandit_counts": "tests/tabular/tabular_posteriors_test.py",
  "conflicts": "tests/methods/gtpo_test.py",
  "divergences": "tests/core/surrogates_test.py",
  "grids": "tests/methods/igpo_test.py",
  "length_rewards": "tests/methods/kimi_k1_5_test.py",
  "log_partition": "tests/methods/kimi_k1_5_test.py",
  "objectives": "tests/methods/objectives_test.py",
  "preference": "tests/core/surrogates_test.py",
  "ranking": "tests/methods/rank_grpo_test.py",
  "returns": "tests/core/returns_rewards_test.py",
  "rewards": "tests/core/returns_rewards_test.py",
  "segments": "tests/methods/spo_segment_test.py",
  "selection": "tests/methods/d3s_test.py",
  "sequences": "tests/methods/kimi_k1_5_test.py",
  "soft_actor_critic": "tests/train/soft_actor_critic_test.py",
  "trackers": "tests/methods/spo_single_stream_test.py",
  "transitions": "tests/rollout/in_context_play_test.py",
  "trees": "tests/methods/spo_segment_test.py",
  "turns": "tests/methods/igpo_test.py",
  "unified": "tests/methods/hpt_unified_test.py",
  "values": "tests/core/returns_rewards_test.py",
}


def test_every_module_of_core_stands_in_the_index_once():
  listed = Counter(re.findall(r"^  (\w+) +\S", core.__doc__ or "", re.M))
  assert listed == Counter(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_of_core_says_what_it_is_and_has_a_test_that_uses_it(name):
  assert importlib.import_module(f"grpo_jax.core.{name}").__doc__
  own = ROOT / f"tests/core/{name}_test.py"
  assert own.exists() != (name in COVERED), "either a test file of its own, or an entry of COVERED"
  path = ROOT / COVERED.get(name, f"tests/core/{name}_test.py")
  imports = [
    n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)
  ]
  assert any(
    node.module == f"grpo_jax.core.{name}"
    or (node.module == "grpo_jax.core" and name in {alias.name for alias in node.names})
    for node in imports
  )
