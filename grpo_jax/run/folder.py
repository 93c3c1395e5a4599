"""The folder of a run: whose it is, and whether a config may go on in it."""

import json
from pathlib import Path

from grpo_jax import sharding
from grpo_jax.errors import UserError
from grpo_jax.run import atomic

# A run may go on with these changed: they do not change what it computes.
FREE = ("checkpoint", "export", "log", "mesh", "reward.workers", "steps")
OURS = ("checkpoints", "eval", "final.json", "metrics.jsonl", "rollouts")


def check_folder(c, workdir: Path) -> None:
  """Makes `workdir` if need be. UserError if it cannot be written, if it holds something else, or a
  run with another config; nothing in it is changed."""
  sharding.from_first(lambda: _check(c, workdir))
  if not all(sharding.together(workdir.is_dir)):
    raise UserError(f"--workdir={workdir}: not seen by every host; name a folder that all share")


def _check(c, workdir: Path) -> None:
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / ".writable"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error
  path = workdir / "config.json"
  if not path.exists():
    if found := [name for name in OURS if (workdir / name).exists()]:
      raise UserError(
        f"--workdir={workdir}: it has {found[0]} but no config.json, so it is not the folder of a "
        "run; use another one"
      )
    return
  try:
    before = json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path}: not valid JSON ({error}); use another --workdir") from error
  _check_same(path, _leaves(before), _leaves(_plain(c)))


def _check_same(path: Path, before: dict, now: dict) -> None:
  free = lambda key: any(key == f or key.startswith(f + ".") for f in FREE)
  missing = object()
  changed = [
    key
    for key in sorted(before.keys() | now.keys())
    if not free(key) and before.get(key, missing) != now.get(key, missing)
  ]
  if changed:
    detail = ", ".join(f"{k} was {json.dumps(before.get(k))[:60]}" for k in changed[:4])
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    raise UserError(
      f"{path}: this folder holds a run with another config ({detail}{more}); use another --workdir"
    )
  if before.get("steps") != now.get("steps") and now.get("optimizer.schedule") != "constant":
    raise UserError(
      f"steps={now.get('steps')}, was {before.get('steps')}: optimizer.schedule="
      f"{now.get('optimizer.schedule')!r} depends on it; keep steps, or use another --workdir"
    )


def check_steps(c, done: int) -> None:
  if done > c.steps:
    raise UserError(f"steps={c.steps}: this run has made {done} already; give at least {done}")


def final_of(workdir: Path, steps: int | None = None) -> dict | None:
  """final.json of a run that has ended, with `steps` only if after so many; else None."""
  try:
    final = json.loads((workdir / "final.json").read_text())
  except (OSError, ValueError):
    return None
  return final if steps is None or final.get("steps") == steps else None


def say_again(workdir: Path, final: dict, fix: str) -> None:
  """The last line of a run that had ended, and what makes it go on."""
  print(f"{workdir}: finished already; {fix}", flush=True)
  print("final: " + json.dumps(final), flush=True)


def save_config(c, workdir: Path) -> None:
  """config.json, after `check_folder`."""
  check_folder(c, workdir)

  sharding.from_first(lambda: atomic.write_json(workdir / "config.json", _plain(c), indent=2))


def _plain(c) -> dict:
  return json.loads(json.dumps(c.to_dict(), default=str))


def _leaves(tree, prefix: str = "") -> dict:
  """{"batch.group": 16, ...}; lists and empty groups count as values."""
  out = {}
  for key, value in tree.items():
    path = f"{prefix}{key}"
    out |= _leaves(value, path + ".") if isinstance(value, dict) and value else {path: value}
  return out
