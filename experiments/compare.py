"""Compare methods on token worlds, with enough seeds to believe it.

  python -m experiments.compare --config=configs/arena.py[:variant] [--config.a.b=c] [--workdir=DIR]

DIR (default runs/NAME[-variant]) gets cells/ (one JSON a world and arm), results.json and
report.html; the same command resumes. The last line of stdout is `final: {json}`.
"""

import json
import sys
import time
from pathlib import Path

from experiments.common.cli import command, parse
from grpo_jax.errors import UserError
from grpo_jax.run import atomic


def main(argv: list[str]) -> int:
  def work(argv):
    config, workdir = parse(argv)
    if "arms" not in config:
      raise UserError("--config: has no `arms`; use configs/arena.py, or experiments.train")
    print("final: " + json.dumps(compare(config, workdir)))

  return command(argv, __doc__, work)


def compare(c, workdir: Path, say=print) -> dict:
  """Runs what is missing of every cell and writes results.json and report.html."""
  import jax

  if c.at_once > 1:
    try:  # two runs side by side use two cores better than one run does
      jax.config.update("jax_num_cpu_devices", c.at_once)
    except RuntimeError:
      say("jax has already started: runs follow each other on one device")
  from experiments.common.arena import cells as arena
  from experiments.common.arena import page, results
  from experiments.common.arena.starts import Starts

  folder = workdir / "cells"
  folder.mkdir(parents=True, exist_ok=True)
  cells = arena.cells(c)
  if c.baseline not in c.arms:
    raise UserError(f"config.baseline={c.baseline!r}: not one of the arms {', '.join(c.arms)}")
  for cell in cells:
    arena.build(cell)  # every name and parameter is right before the first hour is spent
  records = [arena.Record(folder, cell) for cell in cells]
  progress, starts = Progress(cells, records, arena, say), Starts(c.at_once, say)
  for cell, record in zip(cells, records, strict=True):
    progress.at(cell)
    arena.run_cell(record, cell, starts, progress)

  found = {
    (cell.world, cell.arm): whole(arena, r, cell) for cell, r in zip(cells, records, strict=True)
  }
  summary = results.summarize(c, found)
  atomic.write_json(workdir / "results.json", summary)
  atomic.write(workdir / "report.html", page.render(summary))
  say(results.table(summary))
  say(f"report: {workdir / 'report.html'}")
  return {
    "worlds": len(summary["worlds"]),
    "arms": len(summary["arms"]),
    "seeds": c.seeds,
    "wall_s": round(progress.seconds, 1),
    "iqm": {a: round(r["iqm"]["value"], 4) for a, r in summary["arms"].items()},
  }


def whole(arena, record, cell) -> dict:
  lr = arena.best_lr(record, cell)
  tuning = {}
  for r in record.data["runs"]:
    if r["seed"] >= arena.TUNE:
      tuning.setdefault(str(r["lr"]), []).append(r[cell.spec["measure"]][-1])
  runs = [record.get(s, lr) for s in range(cell.spec["seeds"])]
  return {"lr": lr, "runs": runs, "tuning": tuning, "spec": cell.spec}


class Progress:
  """A line a program call: cell, runs done of all, time left."""

  def __init__(self, cells, records, arena, say):
    self.say, self.seconds, self.done = say, 0.0, 0
    per = [c.spec["seeds"] + (len(c.spec["lrs"]) > 1) * len(c.spec["lrs"]) * c.spec["tune_seeds"]
           for c in cells]  # fmt: skip
    ran = [len(r.data["runs"]) for r in records]
    self.left = sum(per) - sum(min(a, b) for a, b in zip(ran, per, strict=True))
    self.start, self.cell = time.monotonic(), cells[0]

  def at(self, cell):
    self.cell = cell

  def __call__(self, runs: int, seconds: float):
    self.done += runs
    self.seconds = time.monotonic() - self.start
    self.left -= runs
    rest = self.seconds / self.done * self.left
    self.say(
      f"{self.cell.world:>18} {self.cell.arm:<14} {runs} runs in {seconds:5.1f} s   "
      f"{self.left} runs left, {rest / 60:.0f} min"
    )


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
