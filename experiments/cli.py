"""Command lines of the form --config=FILE[:variant] --config.a.b=value --workdir=DIR."""

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from grpo_jax.errors import UserError
from grpo_jax.lookup import unknown

# Fields whose keys are free: they are checked where they are read.
_OPEN = ("method_args", "data")


def load_config(spec: str) -> tuple[ConfigDict, str]:
  """(config, name) of FILE.py[:variant], by the file's get_config(variant)."""
  file, _, variant = spec.partition(":")
  path = Path(file)
  if not path.is_file():
    known = sorted(str(p) for p in Path("configs").glob("*.py") if p.stem[0] != "_")
    raise unknown("--config", file, known)
  module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  assert module_spec is not None and module_spec.loader is not None
  module = importlib.util.module_from_spec(module_spec)
  root = str(Path.cwd())
  if root not in sys.path:  # configs import configs.common
    sys.path.insert(0, root)
  module_spec.loader.exec_module(module)
  try:
    config = module.get_config(variant) if variant else module.get_config()
  except ValueError as error:
    raise UserError(f"--config={spec}: {error}") from error
  return config, path.stem + (f"-{variant}" if variant else "")


def _value(text: str, old: Any, field: str) -> Any:
  """`text` read as the type of `old`."""
  if isinstance(old, str):
    return text
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
  if old is None or value is None:
    return value
  if isinstance(old, bool) != isinstance(value, bool):
    raise UserError(f"{field}={text}: expected {type(old).__name__}")
  if isinstance(old, float) and isinstance(value, int):
    return float(value)
  if isinstance(old, tuple) and isinstance(value, list | str):
    return (value,) if isinstance(value, str) else tuple(value)
  if not isinstance(value, type(old)):
    raise UserError(f"{field}={text}: expected {type(old).__name__}, like {old!r}")
  return value


def override(config: ConfigDict, path: str, text: str) -> None:
  """config.a.b = text; a key that is not there is an error naming the nearest one."""
  *parents, last = path.split(".")
  node: Any = config
  for i, key in enumerate(parents):
    if not isinstance(node, ConfigDict) or key not in node:
      raise unknown(
        "--config." + ".".join(parents[:i]), key, node.keys() if hasattr(node, "keys") else ()
      )
    node = node[key]
  if last in node:
    with node.unlocked():
      node[last] = _value(text, node[last], f"--config.{path}")
  elif path.split(".")[0] in _OPEN:
    with node.unlocked():
      node[last] = _value(text, None, f"--config.{path}")
  else:
    raise unknown("--config" + "".join(f".{p}" for p in parents), last, node.keys())


def parse(argv: list[str]) -> tuple[ConfigDict, Path]:
  """(locked config, workdir). UserError for anything that is not understood."""
  spec, workdir, changes = None, None, []
  rest = list(argv)
  while rest:
    flag, equals, value = rest.pop(0).partition("=")
    if flag in ("-h", "--help"):
      raise UserError("usage: --config=configs/NAME.py[:variant] [--config.a.b=c] [--workdir=DIR]")
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
