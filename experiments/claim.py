"""Test a paper's claim: a dial of settings, tuned arms, gates, claims, and a verdict by rule.

  python -m experiments.claim SLUG[:debug|:long|:ablations] [--config.a.b=c] [--workdir=DIR]
  python -m experiments.claim --config=experiments/SLUG/claim.py[:variant] ...

DIR (default runs/claims/SLUG) gets cells/, one JSON a setting and arm; the same command resumes.
Then verdict.json, curves.json and curves.png are written to experiments/SLUG/ (of a :debug run, or
one with overrides: to DIR). :long is the longer attempt that a verdict other than "reproduced"
owes: four times the budget for the main arm and its baseline; :ablations runs the arms of that
role. The last line of stdout is `final: {json}`.

A study is a module with CLAIM, statements(d), ...: see docs/add_a_study.md.
"""

import functools
import importlib
import json
import sys
import time
from pathlib import Path

from experiments.common.cli import command, parse
from grpo_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def main(argv: list[str]) -> int:
  def work(argv):
    config, workdir = parse(spelled(argv))
    if "dial" not in config:
      raise UserError("--config: has no `dial`; give a study as docs/add_a_study.md describes it")
    if not any(a.startswith("--workdir") for a in argv):
      workdir = Path("runs/claims") / f"{config.slug}{'-debug' if config.debug else ''}"
    whole = not config.debug and not any(a.startswith("--config.") for a in argv)
    folder = ROOT / "experiments" / str(config.slug) if whole else workdir
    say = functools.partial(print, flush=True)
    print("final: " + json.dumps(test(config, workdir, folder, say)))

  return command(argv, __doc__, work)


def spelled(argv: list[str]) -> list[str]:
  """SLUG[:variant] in front as the config that it names."""
  if not argv or argv[0].startswith("-"):
    return argv
  slug, colon, variant = argv[0].partition(":")
  name = slug.replace("-", "_").replace(".", "_")
  file = ROOT / "experiments" / name / "claim.py"
  if not file.is_file():
    from grpo_jax.names import unknown

    known = sorted(p.parent.name for p in (ROOT / "experiments").glob("*/claim.py"))
    raise unknown("study", slug, known)
  return [f"--config={file}{colon}{variant}", *argv[1:]]


def test(c, workdir: Path, folder: Path, say=print) -> dict:
  """Runs what is missing, judges, and writes the evidence to `folder`."""
  from experiments.common import runner

  runner.prepare(workdir, c.at_once)
  from experiments.common import evidence, study, trial

  begun = time.monotonic()
  module = importlib.import_module(f"experiments.{c.slug}.claim")
  study.check(c, module)
  found = trial.run(c, module, workdir, say)
  written = evidence.write(c, module, found, folder, say)
  took = round(time.monotonic() - begun, 1)
  short = {k: written[k] for k in ("verdict", "settings", "owed")}
  return {"slug": c.slug, **short, "wall_s": took}


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
