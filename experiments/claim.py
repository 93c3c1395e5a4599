"""Test a paper's claim: arms x token worlds x seeds on the fused loop, and a verdict by rule.

  python -m experiments.claim --config=experiments/SLUG/claim.py[:debug] [--config.a.b=c]
                              [--workdir=DIR]

DIR (default runs/claims/SLUG) gets cells/, one JSON a world and arm; the same command resumes. Then
verdict.json, curves.json and curves.png are written to experiments/SLUG/ (of a :debug run, or one
with fewer seeds than the config has: to DIR). The last line of stdout is `final: {json}`.

A config is a module with CLAIM, CURVES, get_config and statements(data); see
experiments/common/study.py.
"""

import importlib
import json
import sys
import time
from pathlib import Path

from experiments.common.cli import command, parse
from grpo_jax.errors import UserError
from grpo_jax.run import atomic

ROOT = Path(__file__).parents[1]


def main(argv: list[str]) -> int:
  def work(argv):
    config, workdir = parse(argv)
    if "slug" not in config:
      raise UserError("--config: has no `slug`; use experiments/SLUG/claim.py")
    if not any(a.startswith("--workdir") for a in argv):
      workdir = Path("runs/claims") / f"{config.slug}{'-debug' if config.debug else ''}"
    whole = not config.debug and not any(a.startswith("--config.") for a in argv)
    folder = ROOT / "experiments" / str(config.slug) if whole else workdir
    print("final: " + json.dumps(test(config, workdir, folder)))

  return command(argv, __doc__, work)


def test(c, workdir: Path, folder: Path, say=print) -> dict:
  """Runs what is missing, judges, and writes the evidence to `folder`."""
  from experiments.common import statements, study
  from experiments.common.arena import cells as arena

  module = importlib.import_module(f"experiments.{c.slug}.claim")
  (workdir / "cells").mkdir(parents=True, exist_ok=True)
  cells = arena.cells(c)
  for cell in cells:
    arena.build(cell)  # every name and parameter is right before anything runs
  records = [arena.Record(workdir / "cells", cell) for cell in cells]
  start = time.monotonic()
  study.run(cells, records, module, say)

  data = study.Data(cells, records)
  verdict, found = statements.judge(module.statements(data))
  variant = ":debug" if c.debug else ""
  evidence = {
    "claim": module.CLAIM,
    "verdict": verdict,
    "rule": statements.RULE,
    "statements": found,
    "numbers": data.numbers(module.CURVES),
    "sampled_tokens": data.sampled(),
    "command": f"python -m experiments.claim --config=experiments/{c.slug}/claim.py{variant}",
    "seeds": c.seeds,
    "setting": {k: c[k].to_dict() for k in ("plan", "worlds", "arms")} | {"lr": c.lrs[0]},
    "notes": module.NOTES,
    "program_s": round(sum(r["program_s"] for rec in records for r in rec.data["runs"]), 1),
  }
  folder.mkdir(parents=True, exist_ok=True)
  atomic.write_json(folder / "verdict.json", evidence, indent=1, ensure_ascii=False)
  curves = data.curves(module.CURVES)
  atomic.write_json(folder / "curves.json", curves)
  study.plot(curves, folder / "curves.png")
  for f in found:
    say(f"{f['result']:>6}: {f['text']}: {f['x']:.3f} - {f['y']:.3f} = {f['difference']:.3f} "
        f"[{f['low']:.3f}, {f['high']:.3f}]")  # fmt: skip
  say(f"evidence: {folder}")
  return {"slug": c.slug, "verdict": verdict, "wall_s": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
