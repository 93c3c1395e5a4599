"""Tasks of reasoning-gym without importing them all.

Standard library only: the reward processes import this, and their start-up counts.
"""

import contextlib
import importlib
import importlib.util
import pathlib
import re
import sys
import types
import warnings

from grpo_jax.errors import UserError
from grpo_jax.names import check_keys, one_of, unknown


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
      one_of("data.mix.name", name, known)
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
