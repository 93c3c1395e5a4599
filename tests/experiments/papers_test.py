"""The list of papers says what is in the tree, and nothing else."""

import json

from experiments import papers
from grpo_jax import methods


def test_there_is_a_row_a_paper_and_every_method_of_a_paper_has_one(capsys):
  assert papers.main(["--json"]) == 0
  table = json.loads(capsys.readouterr().out)
  assert len(table) == len({r["slug"] for r in table}) == 86
  built = {r["code"] for r in table if r["code"]}
  from grpo_jax.methods import base

  own = {m for m in methods.names() if not (papers.ROOT / base.__path__[0] / f"{m}.py").exists()}
  assert {f"grpo_jax/methods/{m}.py" for m in own} <= built
  for r in table:
    assert (r["verdict"] == "not built") == (r["code"] is None)
    assert r["config"] is None or (papers.ROOT / r["config"]).is_file()


def test_a_wrong_argument_is_one_line(capsys):
  assert papers.main(["--jsno"]) == 2
  assert capsys.readouterr().err.count("\n") == 1
