"""The list of papers says what is in the tree, and nothing else."""

import json

import pytest

from experiments import papers
from experiments.common import papers_page
from experiments.common.verdict import WORDS
from grpo_jax import methods

PAPER = {"nr": "07", "slug": "two-words", "title": "A | B", "home": ""}
NEW = {
  "protocol": 2, "verdict": "in part", "where": ["much"], "untested": "all else", "owed": None,
  "settings": {"none": "world cannot tell", "much": "reproduced"}, "dial": "noise",
  "effect": {"none": {}, "much": {"difference": 0.1, "low": 0.05, "high": 0.15}},
  "scale": {"parameters": 120_000, "world": "w", "params": {}, "tokens": None},
}  # fmt: skip
REAL = {
  "what": "steps on sums", "before": 0.1, "after": [0.2, 0.1, 0.3], "gain": [0.1, 0.02, 0.18],
  "tokens": 12_000, "minutes": 3.5, "seeds": 1, "command": "c",
}  # fmt: skip


@pytest.fixture
def tree(tmp_path, monkeypatch):
  """Puts files of these contents into an empty repository, and gives the paper's row."""
  monkeypatch.setattr(papers, "ROOT", tmp_path)

  def put(paper=PAPER, **files):
    for name, content in files.items():
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content if isinstance(content, str) else json.dumps(content))
    return papers.row(paper, {})

  return put


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
    assert r["verdict"] in WORDS and set(r["settings"].values()) <= set(WORDS)
    assert r["config"] is None or (papers.ROOT / r["config"]).is_file()
    assert r["code"] is None or (papers.ROOT / r["code"]).exists()
  homes = {p["slug"]: p["home"] for p in papers.entries() if p["home"]}
  for slug, home in homes.items():
    assert next(r for r in table if r["slug"] == slug)["code"] == home


def test_docs_and_readme_say_what_is_in_the_tree():
  table, again = papers.rows(), "; run python -m experiments.papers --write"
  page = (papers.ROOT / "docs/papers.md").read_text(encoding="utf-8")
  assert page == papers_page.page(table), "docs/papers.md" + again
  readme = (papers.ROOT / "README.md").read_text(encoding="utf-8")
  assert readme == papers_page.with_table(readme, table), "README.md" + again
  assert sum(f"{r['nr']} {r['slug']}" in page for r in table) == 86


@pytest.mark.parametrize(
  "home",
  ["grpo_jax/optim/two_words.py", "grpo_jax/agents/two_words/__init__.py",
   "pallas_kernels/two_words/__init__.py"],
)  # fmt: skip
def test_code_is_found_by_the_slug_in_any_room(tree, home):
  assert tree()["verdict"] == "not built"
  assert tree(**{home: ""})["code"] == home.removesuffix("/__init__.py")


def test_two_homes_are_refused_and_an_exception_is_named(tree):
  tree(**{"grpo_jax/methods/two_words.py": "", "elsewhere/x.py": ""})
  assert tree(PAPER | {"home": "elsewhere/x.py"})["code"] == "elsewhere/x.py"
  with pytest.raises(ValueError, match="one home"):
    tree(**{"grpo_jax/optim/two_words.py": ""})


def test_a_verdict_of_the_old_protocol_counts_as_not_run(tree):
  at = "experiments/two_words/verdict.json"
  old = tree(**{"grpo_jax/methods/two_words.py": "", at: {"verdict": "refuted", "statements": []}})
  assert (old["verdict"], old["note"], old["evidence"]) == ("not run", "old protocol", None)
  new = tree(**{at: NEW})
  assert (new["verdict"], new["note"], new["evidence"]) == ("in part", None, at)
  with pytest.raises(ValueError, match="'confirmed' is none of"):
    tree(**{at: NEW | {"verdict": "confirmed"}})


def test_the_page_shows_what_evidence_and_the_real_model_say(tree):
  r = tree(**{
    "grpo_jax/methods/two_words.py": "",
    "experiments/two_words/verdict.json": NEW,
    "experiments/two_words/claim.py": 'CHANGES = ("reward", "loss")\n',
    "experiments/two_words/curves.png": "",
    "experiments/two_words/real.json": REAL,
  })  # fmt: skip
  (line,) = [x for x in papers_page.page([r]).splitlines() if "07 two-words" in x]
  for text in (
    r"A \| B", "| reward, loss |", "| in part (much) |", "noise none: world cannot tell<br>",
    "noise much: reproduced +0.100 [0.050, 0.150]", "0.12M parameters, w", "| all else |",
    "(../experiments/two_words/curves.png)", "steps on sums; 0.1 → 0.2 [0.1, 0.3], +0.100",
    "12,000 tokens, 3.5 minutes, 1 seeds",
  ):  # fmt: skip
    assert text in line, text
  readme = f"a\n{papers_page.BEGIN}\nold\n{papers_page.END}\nb\n"
  made = papers_page.with_table(readme, [r])
  assert "in part (much)" in made and "old" not in made and made.endswith(f"{papers_page.END}\nb\n")
  assert papers_page.with_table(made, [r]) == made


def test_a_wrong_argument_is_one_line(capsys):
  assert papers.main(["--jsno"]) == 2
  assert capsys.readouterr().err.count("\n") == 1
