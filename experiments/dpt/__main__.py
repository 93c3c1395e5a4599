"""DPT's claims, tested: trains what is missing, judges, and writes the evidence.

  python -m experiments.dpt [--parts=gaussian,linear,bernoulli,darkroom] [--workdir=runs/dpt]

Each part is one run of configs/dpt.py in WORKDIR/PART (some ten minutes on two cores); the same
command resumes. With all parts verdict.json and curves.png go to experiments/dpt/, with fewer of
them to WORKDIR. The last line of stdout is `final: {json}`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from experiments import statements
from experiments.cli import command
from experiments.dpt import claims
from grpo_jax.lookup import unknown
from grpo_jax.train import atomic
from grpo_jax.train.page_style import COLOURS

HERE = Path(__file__).parent


def main(argv: list[str]) -> int:
  return command(argv, __doc__, lambda argv: print("final: " + json.dumps(test(*parse(argv)))))


def parse(argv: list[str]) -> tuple[list[str], Path]:
  """UserError for anything that is not understood."""
  parts, workdir = list(claims.PARTS), Path("runs/dpt")
  for flag in argv:
    name, _, value = flag.partition("=")
    if name == "--parts":
      parts = value.split(",")
    elif name == "--workdir":
      workdir = Path(value)
    else:
      raise unknown("command line", name, ("--parts", "--workdir"))
  for part in parts:
    if part not in claims.PARTS:
      raise unknown("--parts", part, claims.PARTS)
  return parts, workdir


def test(parts: list[str], workdir: Path) -> dict:
  from configs import dpt
  from grpo_jax.train import launch

  start = time.monotonic()
  finals = {
    part: launch.launch(dpt.get_config(claims.VARIANTS[part]), workdir / part) for part in parts
  }
  runs = {part: claims.read(workdir / part) for part in parts}
  said = [s for part in parts for s in claims.PARTS[part](runs[part])]
  verdict, found = statements.judge(said)
  evidence = {
    "claim": claims.CLAIM,
    "verdict": verdict,
    "rule": statements.RULE,
    "statements": found,
    "numbers": finals,
    "command": "python -m experiments.dpt",
    "parts": parts,
    "seeds": dpt.get_config().seeds,
    "notes": claims.NOTES,
  }
  folder = HERE if set(parts) == set(claims.PARTS) else workdir
  atomic.write_json(folder / "verdict.json", evidence, indent=1, ensure_ascii=False)
  draw(runs, folder / "curves.png")
  for f in found:
    print(f"{f['result']:>6}: {f['text']}: {f['x']:.3f} against {f['y']:.3f}, difference "
          f"[{f['low']:.3f}, {f['high']:.3f}]")  # fmt: skip
  print(f"evidence: {folder}")
  return {"verdict": verdict, "wall_s": round(time.monotonic() - start, 1)}


def draw(runs: dict[str, claims.Run], path: Path) -> None:
  """A panel a part: regret with bounds over seeds, total variation, or return. Needs matplotlib."""
  try:
    from matplotlib.figure import Figure
  except ImportError:
    return
  figure = Figure(figsize=(4.2 * len(runs), 3.2), dpi=100, layout="constrained")
  panels = np.atleast_1d(figure.subplots(1, len(runs)))
  for (part, run), axes in zip(runs.items(), panels, strict=True):
    for (name, values), colour in zip(_lines(part, run).items(), COLOURS * 2, strict=False):
      at = np.arange(values.shape[1]) + (part != "bernoulli")
      axes.plot(at, values.mean(axis=0), color=colour, label=name, lw=1.6)
      axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)
    axes.set_title(_TITLES[part], fontsize=9, loc="left")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
  figure.savefig(path)


_TITLES = {
  "gaussian": "Gaussian arms: regret against pulls",
  "linear": "linear arms: regret against pulls",
  "bernoulli": "distance to exact Thompson, against data",
  "darkroom": "Darkroom: return against episode",
}


def _lines(part: str, run: claims.Run) -> dict[str, np.ndarray]:
  """Lines [seeds or 1, points] of a panel."""
  if part == "bernoulli":
    return {"trained": run.curves["distance"], "untrained": run.before["distance"]}
  if part == "darkroom":
    returns = run.curves["return"]
    return {"DPT": returns, "optimal": np.full((1, returns.shape[1]), run.oracles["best"])}
  others = {k: np.cumsum(v)[None] for k, v in run.oracles["online"].items()}
  return {"DPT": np.cumsum(run.curves["online"], axis=1)} | others


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
