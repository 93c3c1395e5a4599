"""Rules on the tree: who imports whom, how long a file is, what must not be committed.

The contracts on imports are in pyproject.toml; import-linter checks them. It cannot name
sub-modules of other packages, nor lengths, nor hosts: those are checked here. Every rule is also
run on a tree that breaks it.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ("grpo_jax/types.py", "grpo_jax/errors.py", "grpo_jax/core", "grpo_jax/methods")
NOT_PURE = ("jax.sharding", "numpy", "optax", "flax", "chex", "absl", "ml_collections")
MAX_FILE, MAX_FUNCTION, MAX_BYTES = 400, 60, 1_000_000
MAX_IN = {"grpo_jax/methods": 120, "grpo_jax/envs/worlds": 150}  # a paper, a world: one short file

# Longer than MAX_FUNCTION for a reason: "path:function": reason.
LONG: dict[str, str] = {
  "grpo_jax/train/llm.py:run": "the loop, to be read from top to bottom",
  "grpo_jax/train/offline.py:run": "the same for given completions",
}

MACHINE_PATH = re.compile(r"(?<![\w./~$)}-])/(work|root|home|opt|tmp)/\w")
REGISTRY = re.compile(
  r"(pypi|pythonhosted|npmjs|debian|pytorch|anaconda|crates|rubygems|proxy\.golang)\.(org|io|com)\b"
)
# Words of how the work was planned, which say nothing to a reader: "paper NN" is a row of
# experiments/papers.tsv.
PLANNING = re.compile(r"(?<![a-z])(cards?(?![a-z])|issue [0-9])", re.IGNORECASE)


def python_files(root: Path, *parts: str) -> Iterator[Path]:
  for part in parts:
    path = root / part
    yield from [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      yield f"{node.value.id}.{node.attr}"  # `jax.sharding.Mesh` needs no import of its own


def impure(root: Path) -> list[str]:
  """Imports in types, core and methods of what would tie them to devices or to a framework."""
  return [
    f"{path.relative_to(root)}: {name}"
    for path in python_files(root, *PURE)
    for name in imports(ast.parse(path.read_text()))
    if any(name == banned or name.startswith(banned + ".") for banned in NOT_PURE)
  ]


def long_files(root: Path) -> list[str]:
  files = python_files(root, "grpo_jax", "pallas_kernels", "experiments", "configs", "tests")
  names = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in files}
  return [f"{name}: {n} lines" for name, n in names.items() if n > longest(name)]


def longest(name: str) -> int:
  inside = [n for part, n in MAX_IN.items() if name.startswith(part + "/")]
  return min([MAX_FILE, *inside])


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
  """Lines of a function, its docstring and the functions defined in it left out."""
  inner = [n for n in ast.walk(function) if isinstance(n, ast.FunctionDef) and n is not function]
  doc = function.body[:1] if ast.get_docstring(function, clean=False) is not None else []
  out = {line for n in [*inner, *doc] for line in range(n.lineno, (n.end_lineno or 0) + 1)}
  return (function.end_lineno or 0) - function.lineno + 1 - len(out)


def long_functions(root: Path) -> list[str]:
  return [
    f"{name}: {lines} lines"
    for path in python_files(root, "grpo_jax", "pallas_kernels")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if (lines := code_lines(node)) > MAX_FUNCTION
    if (name := f"{path.relative_to(root)}:{node.name}") not in LONG
  ]


def unwanted_content(root: Path) -> list[str]:
  """Files over 1 MB, paths of one machine, hosts of registries and words of planning, among the
  tracked files."""
  listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
  found = []
  for name in filter(None, listed.stdout.decode().split("\0")):
    path = root / name
    if not path.is_file():  # deleted, not yet committed
      continue
    if path.stat().st_size > MAX_BYTES:
      found.append(f"{name}: {path.stat().st_size} bytes")
    text = path.read_bytes().decode(errors="replace")
    if path.name != Path(__file__).name:
      found += [
        f"{name}: {m[0]}" for p in (MACHINE_PATH, REGISTRY, PLANNING) for m in p.finditer(text)
      ]
  return found


def slugs(root: Path) -> set[str]:
  """The papers' names as identifiers."""
  lines = (root / "experiments/papers.tsv").read_text(encoding="utf-8").splitlines()[1:]
  return {re.sub(r"[-.]", "_", line.split("\t")[1]) for line in lines}


def said(node: ast.AST, docs: set[int]) -> str:
  """What a node of a program says: a name or a string, not a docstring."""
  if isinstance(node, ast.Constant):
    return node.value if isinstance(node.value, str) and id(node) not in docs else ""
  for field in ("id", "attr", "arg", "name"):
    if isinstance(word := getattr(node, field, None), str):
      return word
  return ""


def papers_in_shared_rooms(root: Path) -> list[str]:
  """Names, arguments and strings of a paper in grpo_jax outside the paper's own file or folder;
  docstrings may cite it."""
  found, known = [], slugs(ROOT) - {"loop"}  # paper 71 is called as every loop is
  for path in python_files(root, "grpo_jax"):
    if known & {part.removesuffix(".py") for part in path.relative_to(root).parts}:
      continue
    tree = ast.parse(path.read_text())
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
      if hit := known & set(re.findall(r"\w+", said(node, docs))):
        found.append(f"{path.relative_to(root)}: {', '.join(hit)}")
  return found


def run_import_linter(root: Path) -> subprocess.CompletedProcess[str]:
  command = "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"
  return subprocess.run(
    [sys.executable, "-c", command, "--no-cache"], cwd=root, capture_output=True, text=True
  )


def broken_contracts(root: Path) -> list[str]:
  result = run_import_linter(root)
  return [] if result.returncode == 0 else (result.stdout + result.stderr).splitlines()


RULES = [impure, long_files, long_functions, broken_contracts, papers_in_shared_rooms]


@pytest.mark.parametrize("rule", RULES)
def test_tree_keeps_the_rule(rule: Callable[[Path], list[str]]):
  assert rule(ROOT) == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_tracked_files_are_small_and_name_no_machine_and_no_registry():
  assert unwanted_content(ROOT) == []


@pytest.fixture
def planted(tmp_path: Path) -> Path:
  """A copy of the tree to break."""
  for part in ("grpo_jax", "pallas_kernels"):
    shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copy(ROOT / "pyproject.toml", tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  "line",
  [
    "from jax.sharding import Mesh",
    "from jax import sharding",
    "import jax\nmesh = jax.sharding.Mesh",
    "import numpy as np",
    "from optax import adamw",
    "import flax.nnx",
  ],
)
def test_a_planted_impure_import_is_found(planted: Path, line: str):
  (planted / "grpo_jax/core/planted.py").write_text(line + "\n")
  assert impure(planted) and all("planted.py" in found for found in impure(planted))


def test_a_planted_long_file_and_long_function_are_found(planted: Path):
  body = "  x = 1\n" * MAX_FUNCTION
  (planted / "grpo_jax/core/planted.py").write_text(f"def f():\n{body}" + "x = 1\n" * MAX_FILE)
  assert [found.split(":")[0] for found in long_files(planted)] == ["grpo_jax/core/planted.py"]
  assert any("planted.py:f:" in found for found in long_functions(planted))


@pytest.mark.parametrize(
  "line",
  ["if method == 't2mir':\n  pass", "def f(igpo): ...", "x.spo_segment", "import grpo_jax.dpt"],
)
def test_a_planted_paper_in_a_shared_room_is_found(planted: Path, line: str):
  (planted / "grpo_jax/train/planted.py").write_text(f'"""After IGPO (igpo)."""\n{line}\n')
  found = papers_in_shared_rooms(planted)
  assert len(found) == 1 and found[0].startswith("grpo_jax/train/planted.py")


@pytest.mark.parametrize("folder", MAX_IN)
def test_a_planted_paper_or_world_of_more_than_its_lines_is_found(planted: Path, folder: str):
  path = planted / folder / "planted.py"
  path.write_text("x = 1\n" * MAX_IN[folder])
  assert not long_files(planted)
  path.write_text("x = 1\n" * (MAX_IN[folder] + 1))
  assert [found.split(":")[0] for found in long_files(planted)] == [f"{folder}/planted.py"]


@pytest.mark.parametrize(
  "path, line, contract",
  [
    ("core/planted.py", "from grpo_jax.train import metrics", "higher layers"),
    ("models/planted.py", "from grpo_jax.data import prompts", "higher layers"),
    ("core/planted.py", "import numpy", "need nothing but jax"),
    ("methods/base/planted.py", "from grpo_jax.methods.base import grpo", "base methods"),
    ("methods/planted.py", "from grpo_jax.methods import planted_too", "papers do not"),
    ("../pallas_kernels/planted/__init__.py", "from grpo_jax import types", "know nothing"),
    ("../pallas_kernels/planted/__init__.py", "import pallas_kernels.token_logprob", "kernels do"),
  ],
)
def test_a_planted_import_breaks_its_contract(planted: Path, path: str, line: str, contract: str):
  target = planted / "grpo_jax" / path
  target.parent.mkdir(exist_ok=True)
  target.write_text(line + "\n")
  (planted / "grpo_jax/methods/planted_too.py").touch()
  broken = [found for found in broken_contracts(planted) if " BROKEN" in found]
  assert any(contract in found for found in broken)


def test_a_module_that_no_layer_names_is_found(planted: Path):
  (planted / "grpo_jax/planted.py").touch()
  assert any("planted" in found for found in broken_contracts(planted))


@pytest.mark.parametrize(
  "text",
  [
    "data = '/" + "root/data'",
    "see /" + "tmp/w/run",
    "https://py" + "pi.org/simple",
    "a" * 2**20,
    "by the method ca" + "rd",
    "as Ca" + "rds 3 and 4 say",
    "iss" + "ue 3 asks",
  ],
)
def test_planted_content_is_found(tmp_path: Path, text: str):
  (tmp_path / "note.md").write_text(text)
  subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
  subprocess.run(["git", "add", "note.md"], cwd=tmp_path, check=True)
  assert unwanted_content(tmp_path) != []


def test_ordinary_paths_are_not_taken_for_machine_paths():
  for text in ("a wildca" + "rd", "disca" + "rded"):
    assert not PLANNING.search(text)
  for text in ("runs/home/x", "./work/x", "~/home/x", "$HOME/opt/x", "a/tmp/x"):
    assert not MACHINE_PATH.search(text)
