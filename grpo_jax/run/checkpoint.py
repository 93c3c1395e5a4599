"""Checkpoints of the whole carry: device state by orbax, host position beside it as JSON.

A save appears under its step by a rename, so a kill inside it leaves the previous one. Each save
gets a manifest of file sizes and checksums; `restore` skips a damaged one, says so, and takes the
one before.
"""

import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from grpo_jax import sharding
from grpo_jax.errors import UserError
from grpo_jax.run import atomic


class Checkpoints:
  """workdir/checkpoints/<step>/, at most `keep` of them."""

  def __init__(self, workdir: str | Path, keep: int = 2, say=print):
    self.folder = Path(workdir).absolute() / "checkpoints"
    self.say = say
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
      )
      self.manager = ocp.CheckpointManager(self.folder, options=options)

  def steps(self) -> list[int]:
    return sorted(self.manager.all_steps())

  def save(self, step: int, state: Any, host: dict) -> None:
    """state: a pytree of arrays; host: anything JSON can hold. Blocks until it is on the disk."""
    if step in self.steps():
      return
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(_tree(state)), host=ocp.args.JsonSave(host)
    )
    self.manager.save(step, args=args)
    self.manager.wait_until_finished()
    if jax.process_index() == 0:
      atomic.write_json(self._manifest(step), _sums(self.folder / str(step)))
      for old in self.folder.glob("*.manifest.json"):
        if int(old.name.split(".")[0]) not in self.steps():
          old.unlink()

  def restore(self, state: Any) -> tuple[int, Any, dict] | None:
    """(step, state, host) of the newest save that is whole; None without any.

    state: a pytree of arrays, whose memory is freed before the saved one is read into its shapes
    and shardings; or of ShapeDtypeStructs with shardings. It is left alone if there are no saves.
    Raises UserError if there are saves and none can be read.
    """
    steps = sharding.from_first(self.steps)
    if not steps:
      return None
    like = _freed(state)
    for step in reversed(steps):
      try:
        # One process looks: were a read to fail on one alone, the others would wait for it.
        if problem := sharding.from_first(lambda step=step: self._damage(step)):
          raise ValueError(problem)
        args = ocp.args.Composite(
          state=ocp.args.StandardRestore(_tree(like)), host=ocp.args.JsonRestore()
        )
        found = self.manager.restore(step, args=args)
        leaves = [found["state"][name] for name in _tree(like)]
        return step, jax.tree.unflatten(jax.tree.structure(like), leaves), found["host"]
      except Exception as error:  # orbax, tensorstore and JSON raise many types for a damaged file
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else repr(error)
        self.say(f"checkpoint {step} is damaged ({reason}); trying the one before")
    raise UserError(
      f"{self.folder}: none of the checkpoints {steps} can be read; remove the folder to start "
      "over, or use another --workdir"
    )

  def discard_after(self, step: int) -> None:
    """Removes saves beyond `step`, so that a resumed run writes them anew."""
    for later in [s for s in self.steps() if s > step]:
      self.manager.delete(later)
      if jax.process_index() == 0:
        self._manifest(later).unlink(missing_ok=True)

  def close(self) -> None:
    self.manager.close()

  def _manifest(self, step: int) -> Path:
    return self.folder / f"{step}.manifest.json"

  def _damage(self, step: int) -> str | None:
    """What differs from the manifest. Without one, the process was killed between the rename and
    the manifest: the save is whole, and orbax's own checks remain."""
    path = self._manifest(step)
    if not path.exists():
      return None
    try:
      wanted = json.loads(path.read_text())
    except ValueError:
      return f"{path.name} is not JSON"
    found = _sums(self.folder / str(step))
    for name, value in wanted.items():
      if found.get(name) != value:
        return f"{name} is {'missing' if name not in found else 'not what was written'}"
    return None


def _freed(state: Any) -> Any:
  """Shapes, types and shardings of arrays that are given up."""

  def shape(x):
    if not isinstance(x, jax.Array):
      return x
    out = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    x.delete()
    return out

  return jax.tree.map(shape, state)


def _tree(state: Any) -> dict:
  """Leaves by their path: independent of Python classes, so it can be read without them."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _sums(folder: Path) -> dict[str, list[int]]:
  out = {}
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    crc = 0
    with open(path, "rb") as file:
      while block := file.read(1 << 22):
        crc = zlib.crc32(block, crc)
    out[str(path.relative_to(folder))] = [path.stat().st_size, crc]
  return out
