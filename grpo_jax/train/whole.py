"""Whole runs as one compiled program: what the loops "control" and "fused" have in common.

  config.json     the config
  metrics.jsonl   one row an update, means over seeds; eval rows; steps are updates
  curves.npz      what every seed did, [seeds, updates] and [seeds, evals]
  final.json      the last line of stdout

The program leaves nothing before its end, so a run that was cut off starts anew; one that has
ended is only read.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.run import folder
from grpo_jax.run.metrics import MetricsWriter
from grpo_jax.train.programs.seeds import over_seeds


class Told(NamedTuple):
  """What a program's curves are to a reader."""

  train: Mapping[str, Any]  # [seeds, updates] each
  evals: Mapping[str, Any]  # [seeds, evals] each, the first before any update
  final: Mapping[str, Any]
  rates: Mapping[str, float] = {}  # name of a count a second -> the count of all seeds


def check_seeds(c) -> None:
  for field in ("seed", "seeds"):
    if not isinstance(c[field], int) or c[field] < (field == "seeds") or c[field] >= 2**31:
      raise UserError(f"{field}={c[field]!r}: must be a whole number, seeds at least 1")


def run(
  c, workdir: Path, say, program: Callable, every: int, what: str, read: Callable[[Any], Told]
) -> dict:
  """Runs `program`(seed, lr) -> (state, curves) for c.seeds seeds from c.seed on, or says again
  what the folder holds. every: updates between evaluations; what: of one seed, for the screen."""
  folder.check_folder(c, workdir)
  if (final := folder.final_of(workdir)) is not None:
    folder.say_again(workdir, final, "use another --workdir to run it again")
    return final
  folder.save_config(c, workdir)
  args = c.seed + jnp.arange(c.seeds), jnp.full((c.seeds,), c.plan.lr)
  begun = time.monotonic()
  compiled = over_seeds(program).lower(*args).compile()
  compile_s = time.monotonic() - begun
  say(f"{c.seeds} seeds of {what}; compiled in {compile_s:.1f} s")
  begun = time.monotonic()
  _, curves = jax.block_until_ready(compiled(*args))
  wall_s = time.monotonic() - begun
  told = read(jax.tree.map(np.asarray, curves))
  arrays: Any = {f"eval_{k}": v for k, v in told.evals.items()} | dict(told.train)
  np.savez_compressed(workdir / "curves.npz", **arrays)
  updates = next(iter(told.train.values())).shape[1]
  writer = MetricsWriter(workdir, updates, tensorboard=False, keep_below_step=0)
  for i in range(updates):
    writer.write(i + 1, {k: v[:, i].mean() for k, v in told.train.items()})
  for i in range(updates // every + 1):
    row = {f"eval_{k}": v[:, i].mean() for k, v in told.evals.items()}
    writer.write(i * every, row, kind="eval")
  rates = {name: count / wall_s for name, count in told.rates.items()}
  final = {**told.final, **rates, "compile_s": compile_s, "wall_s": wall_s}
  writer.finish(final)
  return final
