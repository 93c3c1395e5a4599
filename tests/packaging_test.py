"""The package says everything once, the locks agree with it, and nothing is left out of a wheel."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PACKAGES = ("grpo_jax", "pallas_kernels", "experiments", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pins(lock: str) -> dict[str, str]:
  lines = (ROOT / "requirements" / lock).read_text().splitlines()
  parsed = [Requirement(line.split("#")[0]) for line in lines if line and line[0] not in "# "]
  return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in parsed}


def declared(*extras: str) -> list[Requirement]:
  """Requirements of the package with these extras, its references to itself resolved."""
  found = []
  for line in [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]:
    requirement = Requirement(line)
    own = canonicalize_name(requirement.name) == PROJECT["name"]
    found += declared(*requirement.extras) if own else [requirement]
  return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_has_exact_pins_only_and_no_address(lock: Path):
  for line in lock.read_text().splitlines():
    assert re.fullmatch(r"( *#.*|[\w.-]+(\[[\w,-]+\])?==[\w.+!]+( *[;#].*)?)", line), line
    assert "://" not in line and "index" not in line.split("#")[0].split(";")[0]


@pytest.mark.parametrize(
  "lock, extras",
  [
    ("dev.lock", ["dev"]),
    ("quickstart.lock", ["llm", "data", "log"]),
    ("aot.lock", ["dev", "aot"]),
  ],
)
def test_a_lock_pins_every_declared_dependency_inside_its_range(lock: str, extras: list[str]):
  pinned = pins(lock)
  for requirement in declared(*extras):
    version = pinned.get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement} is not in {lock}: run make lock"
    assert requirement.specifier.contains(version), f"{lock} has {version}: run make lock"


@pytest.mark.parametrize("lock", ["quickstart.lock", "aot.lock"])
def test_locks_agree_where_they_overlap(lock: str):
  dev, other = pins("dev.lock"), pins(lock)
  assert {n: v for n, v in other.items() if n in dev} == {
    n: v for n, v in dev.items() if n in other
  }


def test_no_accelerator_is_a_hard_dependency():
  names = [r for r in PROJECT["dependencies"] if re.search(r"cuda|tpu|rocm|nvidia|\[", r)]
  assert names == []


def test_setup_py_says_nothing_that_pyproject_says():
  calls = [n for n in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if type(n) is ast.Call]
  assert [(call.args, call.keywords) for call in calls] == [([], [])]


@pytest.mark.skipif(int(setuptools.__version__.split(".")[0]) < 77, reason="setuptools too old")
def test_a_wheel_would_hold_every_module_and_asset(tmp_path: Path):
  build = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "b")]
  result = subprocess.run(
    [sys.executable, "setup.py", "-q", *build], cwd=ROOT, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  # experiments/<slug> without __init__.py is a folder of results, not a package.
  kept = {
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.suffix in (".py", ".html", ".css", ".js", ".jinja") and "__pycache__" not in path.parts
    if package != "experiments" or (path.parent / "__init__.py").exists()
  }
  built = {p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file()}
  assert kept - built == set()
