"""DPT's claims, tested: trains what is missing, judges, and writes the evidence.

  python -m experiments.dpt [--parts=gaussian,linear,bernoulli,darkroom] [--workdir=runs/dpt]

Each part is one run of configs/dpt.py in WORKDIR/PART (some ten minutes on two cores); the same
command resumes. With all parts verdict.json and curves.png go to experiments/dpt/, with fewer of
them to WORKDIR. The last line of stdout is `final: {json}`.
"""

import sys
import time
from pathlib import Path

import numpy as np

from experiments.common import figures as in_context
from experiments.dpt import claims
from grpo_jax.run.page_style import COLOURS

HERE = Path(__file__).parent


def test(parts: list[str], workdir: Path) -> dict:
  from configs import dpt
  from grpo_jax.train import launch

  start = time.monotonic()
  finals = {
    part: launch.launch(dpt.get_config(claims.VARIANTS[part]), workdir / part) for part in parts
  }
  runs = {part: claims.read(workdir / part) for part in parts}
  folder = HERE if set(parts) == set(claims.PARTS) else workdir
  more = {
    "numbers": finals,
    "command": "python -m experiments.dpt",
    "parts": parts,
    "seeds": dpt.get_config().seeds,
    "notes": claims.NOTES,
  }
  draw(runs, folder / "curves.png")
  said = [s for part in parts for s in claims.PARTS[part](runs[part])]
  verdict = in_context.evidence(folder, claims.CLAIM, said, more)
  return {"verdict": verdict, "wall_s": round(time.monotonic() - start, 1)}


def draw(runs: dict[str, claims.Run], path: Path) -> None:
  """A panel a part: regret with bounds over seeds, total variation, or return. Needs matplotlib."""
  figure = in_context.figure(4.2 * len(runs), 3.2)
  if figure is None:
    return
  panels = np.atleast_1d(figure.subplots(1, len(runs)))
  for (part, run), axes in zip(runs.items(), panels, strict=True):
    lines, colours = _lines(part, run), COLOURS * 2
    for (name, values), colour in zip(lines.items(), colours, strict=False):
      at = np.arange(values.shape[1]) + (part != "bernoulli")
      in_context.band(axes, at, values, name, colour)
    in_context.finish(axes, _TITLES[part])
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
    known = {k: np.asarray(v)[None] for k, v in run.oracles["return"].items()}
    best = np.full((1, returns.shape[1]), run.oracles["best"])
    return {"DPT": returns} | known | {"optimal": best}
  others = {k: np.cumsum(v)[None] for k, v in run.oracles["online"].items()}
  return {"DPT": np.cumsum(run.curves["online"], axis=1)} | others


if __name__ == "__main__":
  sys.exit(in_context.main(sys.argv[1:], __doc__, claims.PARTS, "runs/dpt", test))
