"""A world's passport: what can be had in it, whether this model can learn it, how fast GRPO does.

  python -m experiments.world NAME[:key=value,...] [--start=0.3] [--updates=80] [--lr=0.0003] ...
  python -m experiments.world --all            (every world with its defaults)

Parameters are those of the world's make(); settings are the fields of Settings below. The passport
is printed and kept in benchmarks/results/worlds.json (or --out=FILE) under NAME and its
parameters; the same command prints what is there and goes on where it was interrupted, and with
other settings measures what they change. Rewards are means over 512 problems of held-out prompts
(or what `measured_on` says), greedy after supervised steps and sampled at temperature 1 in GRPO.
The last line of stdout is `final: {json}`.
"""

import dataclasses
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from experiments.common.cli import command
from grpo_jax.errors import UserError
from grpo_jax.names import check_keys, unknown

RESULTS = Path(__file__).parents[1] / "benchmarks/results/worlds.json"
ENOUGH = 0.9  # of the best reward: what supervised steps must reach


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a world is measured. The start is where a study would begin."""

  split: str = "auto"  # "hash" of the prompt where the world has enough prompts, else "id"
  hidden: int = 64
  layers: int = 2
  steps: int = 2000  # supervised, of 128 demonstrations each; fewer if nothing is left to learn
  start: float = 0.3  # sampled success rate at which the warm start ends
  warm_steps: int = 600
  updates: int = 80
  prompts: int = 16
  group: int = 8
  lr: float = 3e-4
  heldout: int = 512
  seed: int = 0


def parse(argv: list[str]) -> tuple[list[tuple[str, dict]], Settings, Path]:
  """([(name, parameters)], settings, file) of a command line."""
  fields = {f.name: f.type for f in dataclasses.fields(Settings)}
  worlds, settings, out, every = [], {}, RESULTS, False
  for word in argv:
    if not word.startswith("--"):
      worlds.append(named(word))
      continue
    flag, _, text = word.removeprefix("--").partition("=")
    if flag == "all" and not text:
      every = True
    elif flag == "out" and text:
      out = Path(text)
    elif flag in fields:
      default = getattr(Settings, flag)
      settings[flag] = _number(text, word) if not isinstance(default, str) else text
      if isinstance(default, int) and settings[flag] != int(settings[flag]):
        raise UserError(f"{word}: give a whole number")
      settings[flag] = type(default)(settings[flag])
    else:
      raise unknown("command line", f"--{flag}", [f"--{x}" for x in (*fields, "all", "out")])
  if every == bool(worlds):
    raise UserError("command line: give worlds, NAME[:key=value,...], or --all")
  if every:
    from grpo_jax import envs

    worlds = [(name, {}) for name in envs.names()]
  return worlds, Settings(**settings), out


def named(word: str) -> tuple[str, dict]:
  """("gated", {"hard": 0.4}) of "gated:hard=0.4"."""
  name, _, rest = word.partition(":")
  params: dict[str, Any] = {}
  for part in filter(None, rest.split(",")):
    key, equals, text = part.partition("=")
    if not equals or not text:
      raise UserError(f"{word}: write parameters as key=value, not {part!r}")
    try:
      params[key] = json.loads(text.lower())
    except ValueError:
      params[key] = text
  return name, params


def _number(text: str, word: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise UserError(f"{word}: give a number") from None


def key_of(name: str, params: dict) -> str:
  """The name as it is written on the command line, parameters in order."""
  rest = ",".join(f"{k}={json.dumps(v).strip(chr(34))}" for k, v in sorted(params.items()))
  return f"{name}:{rest}" if rest else name


def read(path: Path) -> dict:
  return json.loads(path.read_text()) if path.is_file() else {}


def merge(path: Path, key: str, record: dict) -> None:
  """Puts one record into the file; several commands may do so at once."""
  from grpo_jax.run import atomic

  path.parent.mkdir(parents=True, exist_ok=True)
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    fcntl.flock(folder, fcntl.LOCK_EX)
    found = read(path) | {key: record}
    atomic.write_json(path, dict(sorted(found.items())), indent=1)
  finally:
    os.close(folder)


def passport(name: str, params: dict, settings: Settings, out: Path, say=print) -> dict:
  """The record of a world; what an earlier command with these settings measured is kept."""
  from experiments.common import passports
  from grpo_jax import envs

  world = envs.get(name, **params)
  key, wanted = key_of(name, params), dataclasses.asdict(settings)
  found = read(out).get(key, {})
  then = lambda stage: passports.fixed_by(stage, found["settings"])
  record: dict[str, Any] = {"settings": wanted}
  for stage in passports.STAGES.keys() & found.keys():
    if then(stage) == passports.fixed_by(stage, wanted):
      record[stage] = found[stage]
  for stage, measure in passports.STAGES.items():
    if stage not in record:
      begun = time.process_time()
      measured = measure(world, settings)
      record[stage] = measured | {"cpu_s": round(time.process_time() - begun, 1)}
      merge(out, key, record)
    say(f"{key:>32}  {stage:<10} {shown(record[stage])}")
  reached, best = record["supervised"]["reward"], world.best
  record["learnable"] = reached >= ENOUGH * best
  if not record["learnable"]:
    say(f"{key:>32}  cannot be learned by this model: {reached:.3f} of {best:.3f}")
  merge(out, key, record)
  return record


def shown(record: dict) -> str:
  number = lambda v: f"{v:.4g}" if isinstance(v, float) else str(v)
  return "  ".join(f"{k} {number(v)}" for k, v in record.items() if not isinstance(v, dict | list))


def main(argv: list[str]) -> int:
  def work(argv):
    worlds, settings, out = parse(argv)
    from grpo_jax import envs

    if settings.split not in ("auto", "hash", "id"):
      raise unknown("--split", settings.split, ("auto", "hash", "id"))
    check_keys("world", [name for name, _ in worlds], envs.names())
    for name, params in worlds:
      envs.get(name, **params)  # every name and parameter is right before anything runs
    records = {key_of(n, p): passport(n, p, settings, out) for n, p in worlds}
    final = {k: {"learnable": r["learnable"], **r["grpo"]} for k, r in records.items()}
    print("final: " + json.dumps(final))

  return command(argv, __doc__, work)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
