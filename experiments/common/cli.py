"""Command lines of the form --config=FILE[:variant] --config.a.b=value --workdir=DIR."""

import ast
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from grpo_jax.errors import UserError
from grpo_jax.names import unknown

# Fields whose keys are free: they are checked where they are read.
_OPEN = ("method_args", "data")
_NAMES = {int: "a whole number", float: "a number", bool: "True or False", tuple: "a list"}


def load_config(spec: str) -> tuple[ConfigDict, str]:
  """(config, name) of FILE.py[:variant], by the file's get_config(variant)."""
  file, _, variant = spec.partition(":")
  path = Path(file)
  if not path.is_file():
    known = sorted(str(p) for p in Path("configs").glob("*.py") if p.stem[0] != "_")
    raise unknown("--config", file, known)
  root = str(Path.cwd())
  if root not in sys.path:  # configs import configs.common
    sys.path.insert(0, root)
  config = _get_config(path, spec, variant)
  return config, path.stem + (f"-{variant}" if variant else "")


def _get_config(path: Path, spec: str, variant: str) -> ConfigDict:
  module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  if module_spec is None or module_spec.loader is None:
    raise UserError(f"--config={spec}: not a Python file; give a .py file with get_config()")
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise UserError("it has no get_config()")
    config = module.get_config(variant) if variant else module.get_config()
  except UserError as error:
    raise UserError(f"--config={spec}: {error}") from error
  except SyntaxError as error:
    raise UserError(
      f"--config={spec}: SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    ) from error
  except Exception as error:  # whatever a person's Python may raise; one line says where
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if f.filename == str(path)), frames[-1])
    text = " ".join(str(error).split())
    # A locked config lists all that it holds.
    text = re.sub(r'Other fields present: "\{.*\}"(\\n)?', "", text)
    raise UserError(
      f"--config={spec}: {type(error).__name__}: {text} ({place.filename}, line {place.lineno})"
    ) from error
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"--config={spec}: get_config() must return a ConfigDict; see configs/common.py"
    )
  return config


def _value(text: str, old: Any, field: str) -> Any:
  """`text` read as the type of `old`."""
  if isinstance(old, str):
    return text
  if isinstance(old, ConfigDict):
    raise UserError(f"{field}: a group of fields; set one of {', '.join(old.keys())}")
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
  if old is None or value is None:
    return value
  if isinstance(old, bool) != isinstance(value, bool):
    raise UserError(f"{field}={text}: expected {_NAMES.get(type(old), 'True or False')}")
  if isinstance(old, float) and isinstance(value, int):
    return float(value)
  if isinstance(old, tuple) and isinstance(value, list | str):
    return (value,) if isinstance(value, str) else tuple(value)
  if not isinstance(value, type(old)):
    raise UserError(
      f"{field}={text}: expected {_NAMES.get(type(old), type(old).__name__)}, like {old!r}"
    )
  return value


def override(config: ConfigDict, path: str, text: str) -> None:
  """config.a.b = text; a key that is not there is an error naming the nearest one."""
  *parents, last = path.split(".")
  node: Any = config
  for i, key in enumerate(parents):
    here = "--config" + "".join(f".{p}" for p in parents[:i])
    if not isinstance(node, ConfigDict):
      raise UserError(f"{here}: holds one value, so {here}.{key} cannot be set")
    if key not in node:
      raise unknown(here, key, node.keys())
    node = node[key]
  here = "--config" + "".join(f".{p}" for p in parents)
  if not isinstance(node, ConfigDict):
    raise UserError(f"{here}: holds one value, so {here}.{last} cannot be set")
  if last not in node and parents[:1] != [] and parents[0] in _OPEN:
    value = _value(text, None, f"--config.{path}")
  elif last in node:
    value = _value(text, node[last], f"--config.{path}")
  else:
    raise unknown(here, last, node.keys())
  with node.unlocked():
    node[last] = value


def parse(argv: list[str]) -> tuple[ConfigDict, Path]:
  """(locked config, workdir). UserError for anything that is not understood."""
  spec, workdir, changes = None, None, []
  rest = list(argv)
  while rest:
    flag, equals, value = rest.pop(0).partition("=")
    if not equals and rest:
      value, equals = rest.pop(0), "="
    if not equals:
      raise UserError(f"{flag}: needs a value; write {flag}=VALUE")
    if flag == "--config":
      spec = value
    elif flag == "--workdir":
      workdir = Path(value)
    elif flag.startswith("--config."):
      changes.append((flag.removeprefix("--config."), value))
    else:
      raise unknown("command line", flag, ("--config", "--workdir", "--config.<field>"))
  if spec is None:
    raise UserError("--config: missing; for example --config=configs/quickstart.py")
  config, name = load_config(spec)
  for path, text in changes:
    override(config, path, text)
  config.lock()
  return config, workdir or Path("runs") / name


def command(argv: list[str], doc: str | None, work: Callable[[list[str]], object]) -> int:
  """Exit status of work(argv): 0, 2 with one line for a UserError, 130 after Ctrl-C; --help prints
  `doc` instead."""
  if {"-h", "--help"} & set(argv):
    print((doc or "").strip())
    return 0
  try:
    work(argv)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted: the same command goes on where it stopped", file=sys.stderr)
    return 130
  return 0
