"""Makes the learning histories of an in-context config once, for several runs to read.

  python -m experiments.histories --config=configs/t2mir.py:cheetah_vel [--workdir=DIR]

All that --config.data says of tasks and learners holds. DIR gets the data set; the last line of
stdout is `final: {json}` with `path`, for --config.data.histories.path, and the learners' mean
returns by tenths of their lives.
"""

import json
import sys
import time
from pathlib import Path

from experiments.common.cli import command, parse


def make(config, workdir: Path, say=print) -> dict:
  """Raises UserError for a config without histories, and for a folder that holds some."""
  from grpo_jax.data import tfds_history_source
  from grpo_jax.envs import contextual
  from grpo_jax.errors import UserError
  from grpo_jax.train import in_context as in_context_loop
  from grpo_jax.train import launch
  from grpo_jax.train.programs import in_context_histories

  if "histories" not in config.get("data", {}):
    raise UserError("data.histories: missing; use configs/t2mir.py:ad or :cheetah_vel")
  start = time.monotonic()
  launch.use_cache()
  name, params = in_context_loop.family_of(config)
  family = contextual.get(name, **params)
  plan = in_context_histories.plan_of(config.data.histories.to_dict())
  train, heldout = in_context_histories.both(family, family.steps, plan, say)
  splits = {"train": train, "heldout": heldout}
  path = tfds_history_source.write(str(workdir), splits)
  returns = {k: in_context_histories.progress(h, family.horizon) for k, h in splits.items()}
  return {
    "path": path,
    "returns": {k: v.mean(axis=0).round(3).tolist() for k, v in returns.items()},
    "wall_s": round(time.monotonic() - start, 1),
  }


def once(config, workdir: Path) -> dict:
  """As `make`, in WORKDIR/histories; what WORKDIR/histories.json says where they stand already."""
  from grpo_jax.run import atomic

  said = workdir / "histories.json"
  if not said.exists():
    atomic.write_json(said, make(config, workdir / "histories"))
  return json.loads(said.read_text())


def main(argv: list[str]) -> int:
  work = lambda argv: print("final: " + json.dumps(make(*parse(argv))))
  return command(argv, __doc__, work)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
