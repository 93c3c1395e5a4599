"""Claims: the rule that makes a verdict, the studies of the papers, and a whole small one."""

import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from experiments import claim, papers
from experiments.common import statements, study
from experiments.common.arena import cells as arena
from experiments.common.statements import more, not_less
from grpo_jax import envs

ROOT = Path(__file__).parents[2]
SLUGS = sorted(p.parent.name for p in (ROOT / "experiments").glob("*/claim.py"))
SEEDS = np.random.default_rng(0).normal(size=10) * 0.01


@pytest.mark.parametrize(
  ("statement", "result"),
  [
    (more("", SEEDS + 0.1, 0.0, 0.05), "holds"),
    (more("", SEEDS + 0.02, 0.0, 0.05), "fails"),  # surely above, but too little to matter
    (more("", SEEDS - 0.1, 0.0, 0.05), "fails"),
    (more("", 30 * SEEDS, 0.0, 0.05), "open"),
    (not_less("", SEEDS, 0.0, 0.05), "holds"),
    (not_less("", SEEDS - 0.02, 0.0, 0.05), "holds"),
    (not_less("", SEEDS - 0.1, 0.0, 0.05), "fails"),
    (not_less("", 30 * SEEDS, 0.0, 0.05), "open"),
  ],
)
def test_a_statement_is_read_by_the_interval_of_its_difference(statement, result):
  (found,) = statements.judge([statement])[1]
  assert found["result"] == result
  assert found["low"] <= found["difference"] <= found["high"]


def test_seeds_are_paired():
  start = np.arange(10.0)  # seeds differ by far more than arms
  assert statements.judge([more("", start + 0.1 + SEEDS, start, 0.01)])[0] == "confirmed"


def test_a_claim_stands_if_all_of_it_holds_and_falls_with_any_part():
  holds, fails = more("", SEEDS + 1, 0.0), more("", SEEDS - 1, 0.0)
  unsure = more("", 30 * SEEDS, 0.0, 0.05)
  assert statements.judge([holds, holds])[0] == "confirmed"
  assert statements.judge([holds, unsure])[0] == "inconclusive"
  assert statements.judge([holds, unsure, fails])[0] == "refuted"


class AnyMetric(dict):
  """Every metric there is, as noise."""

  def __init__(self, points):
    super().__init__()
    self.points, self.rng = points, np.random.default_rng(0)

  def __contains__(self, name):
    return True

  def __missing__(self, name):
    return self.rng.uniform(size=self.points).tolist() if self.points else float(self.rng.uniform())


def measured(cell):
  """As if the cell had run."""
  world = envs.get(cell.spec["world"], **cell.spec["params"])
  points = cell.spec["plan"]["updates"] // cell.spec["plan"]["eval_every"] + 1
  rng = np.random.default_rng(0)
  one = {name: rng.uniform(size=points).tolist() for name in ("accuracy", "reward", "length")}
  one["parts"] = rng.uniform(size=(points, len(world.parts))).tolist()
  one["turns"] = rng.uniform(size=(points, world.turns)).tolist()
  one |= {"train": AnyMetric(points - 1), "more": AnyMetric(0)}
  return types.SimpleNamespace(get=lambda seed, lr: one)


@pytest.mark.parametrize("slug", SLUGS)
def test_a_study_can_be_built_and_judged(slug):
  module = importlib.import_module(f"experiments.{slug}.claim")
  assert slug in {s.replace("-", "_").replace(".", "_") for s, _ in papers.papers()}
  for variant in ("", "debug"):
    c = module.get_config(variant)
    cells = arena.cells(c)
    assert c.slug == slug and len(c.lrs) == 1
    for cell in cells:
      arena.build(cell)
      assert arena.todo(types.SimpleNamespace(get=lambda *_: None), cell)[0] == (0, c.lrs[0])
    data = study.Data(cells, [measured(cell) for cell in cells])
    verdict, found = statements.judge(module.statements(data))
    assert verdict in papers.VERDICTS and len(found) >= 2
    assert data.curves(module.CURVES) and data.sampled() and data.numbers(module.CURVES)
  assert module.CLAIM and module.NOTES and c.seeds == 2


@pytest.fixture
def tiny(monkeypatch):
  """A module like experiments/SLUG/claim.py, of two arms that are the same."""
  module = types.ModuleType("experiments.tiny.claim")
  module.CLAIM, module.NOTES = "the same is more than the same", "none"
  module.CURVES = (("a", "accuracy"), ("a", "train:reward"), ("a", "more:one"))
  module.statements = lambda d: [more("accuracy", d.final("a", "x"), d.final("a", "y"), 0.1)]
  module.probe = lambda cell: lambda state, start, seed: {"one": seed}
  monkeypatch.setitem(sys.modules, "experiments.tiny.claim", module)
  return study.config(
    "tiny",
    "",
    plan={
      "updates": 2,
      "eval_every": 1,
      "prompts": 2,
      "group": 2,
      "heldout": 8,
      "problems": 8,
      "split": "id",
    },
    worlds={"a": {"world": "modular_addition", "params": {"modulus": 3, "answer": 2}}},
    arms={"x": {"method": "grpo"}, "y": {"method": "grpo"}},
    lr=1e-3,
    seeds=2,
  )


def test_a_claim_leaves_its_evidence_and_the_same_command_runs_nothing_again(
  tiny, tmp_path, monkeypatch
):
  lines = []
  final = claim.test(tiny, tmp_path / "run", tmp_path / "evidence", lines.append)
  verdict = json.loads((tmp_path / "evidence/verdict.json").read_text())
  assert verdict["verdict"] == final["verdict"] == "refuted"
  (found,) = verdict["statements"]
  assert found["difference"] == 0 and found["x"] == found["y"]  # equal warm starts, equal samples
  assert verdict["sampled_tokens"]["a"]["x"] == verdict["sampled_tokens"]["a"]["y"] > 4
  assert verdict["setting"]["plan"]["updates"] == 2 and verdict["seeds"] == 2
  curves = json.loads((tmp_path / "evidence/curves.json").read_text())
  assert curves["a, accuracy"]["x"]["steps"] == [0, 1, 2]
  assert curves["a, train:reward"]["x"]["steps"] == [1, 2]
  assert curves["a, more:one"]["x"]["value"] == [0.5]  # seeds 0 and 1
  assert (tmp_path / "evidence/curves.png").stat().st_size > 1000
  monkeypatch.setattr(arena, "build", lambda cell: (pytest.fail, None))
  again = claim.test(tiny, tmp_path / "run", tmp_path / "evidence", lines.append)
  assert again["verdict"] == "refuted"


def test_a_config_without_a_slug_is_one_line(capsys):
  assert claim.main(["--config=configs/quickstart.py"]) == 2
  assert "has no `slug`" in capsys.readouterr().err
