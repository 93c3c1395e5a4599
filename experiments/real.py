"""A paper's method on the real model, beside its study.

  python -m experiments.real SLUG[:variant] [--steps=N] [--problems=N] [--workdir=DIR]

Trains configs/SLUG.py (SmolLM2-135M on a real task) for N steps, 12 if not said, and writes
experiments/SLUG/real.json: held-out accuracy before and after with the interval of the paired
difference, tokens sampled for the update, minutes, and what the run logged in its first and its
last third. One seed and a short run: it shows that the method works on a language model, and
decides nothing. The same command resumes. The last line of stdout is `final: {json}`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from experiments.common.cli import command, load_config
from grpo_jax.errors import UserError

ROOT = Path(__file__).parents[1]
# Of no use to a reader of the page: times, counts of the machine, and what is the same in all runs.
_HIDDEN = ("time_", "compiles", "step", "kind", "reward_failed", "lr", "log_ratio_clamped")


def main(argv: list[str]) -> int:
  def work(argv):
    spec, steps, problems, workdir = parse(argv)
    print("final: " + json.dumps(real(spec, steps, problems, workdir)))

  return command(argv, __doc__, work)


def parse(argv: list[str]) -> tuple[str, int, int, Path]:
  known = {"--steps": "12", "--problems": "128", "--workdir": ""}
  specs = [a for a in argv if not a.startswith("-")]
  for flag, _, value in (a.partition("=") for a in argv if a.startswith("-")):
    if flag not in known:
      raise UserError(f"{flag}: unknown flag; there are {', '.join(known)}")
    known[flag] = value
  if len(specs) != 1:
    raise UserError("give one paper's slug, for example: python -m experiments.real gtpo")
  for flag in ("--steps", "--problems"):
    if not known[flag].isdigit() or int(known[flag]) < 1:
      raise UserError(f"{flag}={known[flag]!r}: give a whole number of at least 1")
  folder = Path(known["--workdir"] or f"runs/real/{specs[0].replace(':', '-')}")
  return specs[0], int(known["--steps"]), int(known["--problems"]), folder


def real(spec: str, steps: int, problems: int, workdir: Path) -> dict:
  from grpo_jax.train import launch

  slug, _, variant = spec.partition(":")
  c: Any = load_config(f"configs/{slug}.py" + (f":{variant}" if variant else ""))[0]
  with c.unlocked():
    c.steps, c.eval.every, c.eval.problems, c.checkpoint.every = steps, 0, problems, 4
  c.lock()
  final = launch.launch(c, workdir)
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  rows = [r for r in rows if r["kind"] == "train"]
  third = max(len(rows) // 3, 1)
  found = {
    "what": f"SmolLM2-135M, {steps} steps of configs/{slug}.py" + f" ({variant})" * bool(variant),
    "before": final["accuracy_before"],
    "after": final["accuracy_after"],
    "gain": [final["gain"], final["gain_low"], final["gain_high"]],
    "problems": final["problems"],
    "tokens": round(sum(_tokens(r) for r in rows)),
    "minutes": round(sum(r["time_total"] for r in rows) / 60, 1),
    "seeds": 1,
    "numbers": {
      name: [_mean(rows[:third], name), _mean(rows[-third:], name)]
      for name in rows[0]
      if not name.startswith(_HIDDEN)
    },
    "command": f"python -m experiments.real {spec} --steps={steps} --problems={problems}",
  }
  out = ROOT / "experiments" / slug
  if out.is_dir():
    from grpo_jax.run import atomic

    atomic.write_json(out / "real.json", found, indent=1)
  return {k: found[k] for k in ("what", "before", "after", "gain", "tokens", "minutes")}


def _tokens(row: dict) -> float:
  """Tokens that a step sampled for its update; those of groups that were dropped do not count."""
  return row.get("tokens_fed", row["tokens"]) + row.get("tokens_of_values", 0)


def _mean(rows: list[dict], name: str) -> float:
  values = [r[name] for r in rows if r.get(name) is not None]
  return float(f"{sum(values) / max(len(values), 1):.4g}")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
