"""Files that appear whole or not at all, whenever the process or the machine dies."""

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
  """`path` holds `text` after this; before it, what it held. Lone surrogates become "?"."""
  temporary = path.with_name(path.name + ".tmp")
  with open(temporary, "w", encoding="utf-8", errors="replace") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def write_json(path: Path, value: Any, **options) -> None:
  """`value` by json.dumps with these options, and a newline."""
  write(path, json.dumps(value, **options) + "\n")
