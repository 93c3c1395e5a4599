"""Notebooks run from top to bottom, and are committed without outputs."""

import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
DRAWN = {"arena": 2, "in_context": 3, "quick_look": 2}  # pictures
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


@by_name
def test_a_notebook_has_no_outputs_and_installs_in_its_first_code_cell(path):
  cells = nbformat.read(path, as_version=4).cells
  code = [c for c in cells if c.cell_type == "code"]
  assert code and all(not c.outputs and c.execution_count is None for c in code)
  assert '"pip", "install"' in code[0].source


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the notebook machinery, not of ours
@by_name
def test_a_notebook_runs_in_under_three_minutes(path, tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  book = nbformat.read(path, as_version=4)
  folder = tmp_path / "notebooks"
  folder.mkdir()
  start = time.monotonic()
  NotebookClient(book, timeout=180, resources={"metadata": {"path": str(folder)}}).execute()
  assert time.monotonic() - start < 180
  drawn = [o for c in book.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
  assert len(drawn) == DRAWN[path.stem]
