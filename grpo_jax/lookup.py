"""Finding things by name: the nearest spelling, and reasoning-gym tasks without importing them all.

Standard library only: the reward processes import this, and their start-up counts.
"""

import contextlib
import difflib
import importlib
import importlib.util
import pathlib
import pkgutil
import re
import sys
import types
import warnings
from collections.abc import Iterable
from typing import Any

from grpo_jax.errors import UserError


def unknown(field: str, name: object, known: Iterable[str]) -> UserError:
  """The error for a misspelt name: says which field, the nearest known name, and all of a few."""
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
  hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:20])}"
  return UserError(f"{field}: unknown name {name!r}; {hint}")


def check_keys(field: str, given: Iterable[str], known: Iterable[str]) -> None:
  known = set(known)
  for key in given:
    if key not in known:
      raise unknown(field, key, known)


def modules(path: Iterable[str], without: Iterable[str] = ()) -> list[str]:
  """The modules in a package's `__path__` by name: no packages, nothing private."""
  found = {m.name for m in pkgutil.iter_modules(path) if not m.ispkg and m.name[0] != "_"}
  return sorted(found - set(without))


def make(kind: str, package: str, known: Iterable[str], name: str, kwargs: dict) -> Any:
  """`package`.`name`.make(**kwargs). UserError for a name not `known` and an unknown parameter."""
  import inspect

  module = str(name).replace("-", "_")
  if module not in known:
    raise unknown(kind, name, known)
  maker = importlib.import_module(f"{package}.{module}").make
  check_keys(f"{kind}.{module}", kwargs, inspect.signature(maker).parameters)
  return maker(**kwargs)


@contextlib.contextmanager
def _stub_packages(root: pathlib.Path, folder: pathlib.Path):
  """Stands empty packages in for reasoning_gym's, whose own import every task (about a second).

  Every reasoning_gym module is taken out of sys.modules again: what was loaded keeps working
  through its own globals, and a later `import reasoning_gym` gets the real package.
  """
  names = ["reasoning_gym"]
  for part in folder.relative_to(root).parts:
    names.append(f"{names[-1]}.{part}")
  path = root
  try:
    for i, name in enumerate(names):
      path = path if i == 0 else path / name.rpartition(".")[2]
      module = types.ModuleType(name)
      module.__path__ = [str(path)]
      sys.modules[name] = module
    yield names[-1]
  finally:
    for name in [m for m in sys.modules if m.partition(".")[0] == "reasoning_gym"]:
      del sys.modules[name]


_REGISTERED = re.compile(r"""(?:DATASET_NAME\s*=|register_dataset\()\s*["'](\w+)["']""")


def _gym_root() -> pathlib.Path:
  spec = importlib.util.find_spec("reasoning_gym")
  if spec is None:
    raise UserError("data.source: reasoning-gym is not installed; pip install 'grpo-jax[llm]'")
  return pathlib.Path(next(iter(spec.submodule_search_locations or ())))


def _gym_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Task name -> the file that registers it, by reading the sources."""
  return {
    name: path
    for path in sorted(root.rglob("*.py"))
    for name in _REGISTERED.findall(path.read_text(encoding="utf-8"))
  }


def _lean_gym(name: str):
  """The registered classes, or None where the file does not load without the whole library."""
  root = _gym_root()
  files = list(root.rglob(f"{name}.py")) if name.isidentifier() else []
  if len(files) != 1:
    found = _gym_files(root)
    if name not in found and len(found) > 50:  # else the sources are not as this expects
      raise unknown("data.mix.name", name, found)
    files = [found[name]] if name in found else []
  if not files:
    return None
  with _stub_packages(root, files[0].parent) as package:
    try:
      importlib.import_module(f"{package}.{files[0].stem}")
      return sys.modules["reasoning_gym.factory"].DATASETS.get(name)
    except (ImportError, AttributeError, KeyError):
      return None


def gym_classes(name: str):
  """(data set class, config class) of a reasoning-gym task; the whole library only if it must."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # SyntaxWarnings of its dependencies
    classes = None if "reasoning_gym" in sys.modules else _lean_gym(name)
    if classes is None:
      import reasoning_gym.factory

      known = reasoning_gym.factory.DATASETS
      if name not in known:
        raise unknown("data.mix.name", name, known)
      classes = known[name]
  return classes


def gym_dataset(name: str, params: dict, field: str = "data.mix.params"):
  """A reasoning-gym data set; a parameter it does not know or refuses is a UserError."""
  dataset_class, config_class = gym_classes(name)
  check_keys(f"{field} of {name}", params, config_class.__dataclass_fields__)
  try:
    config = config_class(**params)
    if hasattr(config, "validate"):
      config.validate()
  except (AssertionError, TypeError, ValueError) as e:
    raise UserError(f"{field} of {name}: {e}") from e
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return dataset_class(config=config)
