"""T2MIR's claims, tested: trains what is missing, judges, and writes the evidence.

  python -m experiments.t2mir [--parts=full,no_contrast,token,task,dense] [--workdir=runs/t2mir]

Histories of soft actor-critic are made once, in WORKDIR/histories; each part is one arm, a run of
configs/t2mir.py in WORKDIR/ARM. The same command resumes. With all arms verdict.json, curves.png
and routing.png go to experiments/t2mir/, with fewer of them to WORKDIR. The last line of stdout is
`final: {json}`.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import histories
from experiments.common import figures as in_context
from experiments.t2mir import claims, routing
from grpo_jax.run.page_style import COLOURS

HERE = Path(__file__).parent


def test(arms: list[str], workdir: Path) -> dict:
  from configs import t2mir
  from grpo_jax.train import launch

  start = time.monotonic()
  known = histories.once(t2mir.get_config(), workdir)
  finals, runs = {}, {}
  for arm in arms:
    c = t2mir.get_config(arm)
    c.data.histories.path = known["path"]
    finals[arm] = launch.launch(c, workdir / arm)
    runs[arm] = claims.read(workdir / arm, routing.measure(c, workdir / arm))
    run = runs[arm]
    finals[arm] |= {
      "score_by_episode": run.scores.mean(axis=0).round(4).tolist(),
      "score_by_seed": run.learning[:, -1].round(4).tolist(),
      "score_of_a_given_context": run.given.round(4).tolist(),
    }
  folder = HERE if set(arms) == set(claims.ARMS) else workdir
  curves(runs, folder / "curves.png")
  maps(runs, folder / "routing.png")
  more = {
    "numbers": finals,
    "sizes": {arm: run.routing["sizes"] for arm, run in runs.items()},
    "routing": {arm: means(run.routing) for arm, run in runs.items()},
    "command": "python -m experiments.t2mir",
    "parts": arms,
    "learners_by_tenths": known["returns"],
    "histories_s": known["wall_s"],
    "seeds": t2mir.get_config().seeds,
    "notes": claims.NOTES,
  }
  said, weak = claims.statements(runs), claims.weak(runs)
  verdict = in_context.evidence(folder, claims.CLAIM, said, more, weak)
  return {"verdict": verdict, "wall_s": round(time.monotonic() - start, 1)}


def means(found: dict) -> dict[str, dict[str, float]]:
  """Every number that `routing.marks` gives, mean over seeds, before and after training."""
  numbers = [k for k, v in found["after"][0].items() if isinstance(v, float)]
  return {
    stage: {k: round(float(np.mean([seed[k] for seed in found[stage]])), 4) for k in numbers}
    for stage in ("before", "after")
  }


def curves(runs: dict[str, claims.Run], path: Path) -> None:
  """Score against episode in context, and its mean over episodes against training steps."""
  if (figure := in_context.figure(8.4, 3.4)) is None:
    return
  left, right = figure.subplots(1, 2)
  for (arm, run), colour in zip(runs.items(), COLOURS, strict=False):
    at = np.arange(run.scores.shape[1]) + 1
    in_context.band(left, at, run.scores, arm, colour)
    in_context.band(right, run.steps, run.learning, arm, colour)
  in_context.finish(left, "held-out goals: score against episode in context", None)
  in_context.finish(right, "its mean over episodes against training steps", None)
  figure.savefig(path)


def maps(runs: dict[str, claims.Run], path: Path) -> None:
  """Of the first seed: experts by modality, and the likeness of contexts by the task gate."""
  by_modality = [(a, g) for a, g in _MAPS if g in _first(runs, a)]
  alike = [a for a in ("full", "no_contrast") if "q_similarity" in _first(runs, a)]
  if not by_modality + alike or (figure := in_context.figure(8.4, 6.4)) is None:
    return
  rows: Any = figure.subfigures(2, 1, height_ratios=(1, 2))
  for (arm, name), axes in zip(by_modality, _panels(rows[0], len(by_modality)), strict=True):
    share = np.asarray(_first(runs, arm)[name])
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (m, e), value in np.ndenumerate(share):
      colour = "white" if value > 0.6 else "#333"
      axes.text(e, m, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_yticks(range(3), ("state", "action", "reward"))
    axes.set_title(f"{arm}: {_MAPS[arm, name]}, % of a modality's weight", fontsize=9, loc="left")
  for arm, axes in zip(alike, _panels(rows[1], len(alike)), strict=True):
    axes.imshow(_first(runs, arm)["q_similarity"], cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_title(f"{arm}: cosine of q, contexts sorted by task", fontsize=9, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
  figure.savefig(path)


_MAPS = {("full", "token_by_modality"): "token gate", ("full", "task_by_modality"): "task gate"}


def _first(runs: dict[str, claims.Run], arm: str) -> dict:
  return runs[arm].routing["after"][0] if arm in runs else {}


def _panels(part, count: int):
  return np.atleast_1d(part.subplots(1, count)) if count else []


if __name__ == "__main__":
  sys.exit(in_context.main(sys.argv[1:], __doc__, claims.ARMS, "runs/t2mir", test))
