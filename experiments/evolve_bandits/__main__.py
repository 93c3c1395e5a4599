"""EVOLvE's claims, tested on SmolLM2: plays what is missing, judges, and writes the evidence.

  python -m experiments.evolve_bandits [--config=configs/evolve_bandits.py[:contextual][,debug]]
                                       [--config.a.b=value] [--workdir=runs/evolve_bandits]

WORKDIR has the games of every condition, so the same command goes on where it stopped. With the
config as it is in configs/, verdict.json, table.md and curves.png go to this folder, those of
`:contextual` to its folder of that name, else to WORKDIR. The last line of stdout is `final:
{json}`. About half an hour on two cores.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from configs import evolve_bandits
from experiments.common import cli, regret
from experiments.common import figures as in_context
from experiments.evolve_bandits import claims
from grpo_jax.run import atomic

HERE = Path(__file__).parent
CONFIG = "configs/evolve_bandits.py"
ORACLES = ("ucb", "linucb", "thompson", "greedy", "uniform")
COLUMNS = ("regret", "s.e.", "alpha", "beta", "OptFrac", "MinFrac", "SuffixFail", "win rate")
TITLES = {
  "ucb": "UCB",
  "linucb": "LinUCB",
  "thompson": "Thompson",
  "greedy": "greedy",
  "uniform": "uniform",
  "base_rh": "base, RH",
  "base_sh": "base, SH",
  "guided_ag": "guided, AG",
  "few_shot_sh": "few-shot, SH",
  "oft": "OFT, RH",
  "oft_grpo": "OFT + GRPO, RH",
}


def main(argv: list[str]) -> int:
  work = lambda argv: print("final: " + json.dumps(test(*parse(argv), argv)))
  return cli.command(argv, __doc__, work)


def parse(argv: list[str]) -> tuple[Any, Path]:
  named = any(a == "--config" or a.startswith("--config=") for a in argv)
  return cli.parse(argv if named else [f"--config={CONFIG}", *argv])


def test(c: Any, workdir: Path, argv: list[str]) -> dict:
  from experiments.evolve_bandits import run, settings
  from grpo_jax.train import launch

  launch.use_cache()
  start = time.monotonic()
  games = run.run(c, workdir)
  kind = "contextual" if settings.contextual(c.data) else ""
  rows = table(games, c.data.arms, c.data.get("gap", 0))
  flags = [a for a in argv if not a.startswith("--workdir")]
  more = {
    "numbers": rows,
    "command": " ".join(["python -m experiments.evolve_bandits", *flags]),
    "config": json.loads(c.to_json_best_effort()),
    "notes": claims.NOTES[kind],
  }
  same = c.to_dict() == evolve_bandits.get_config(kind).to_dict()
  folder = HERE / kind if same else workdir
  folder.mkdir(parents=True, exist_ok=True)
  atomic.write(folder / "table.md", markdown(rows))
  draw(games, folder / "curves.png")
  print(markdown(rows))
  verdict = in_context.evidence(folder, claims.CLAIM[kind], claims.statements(games), more)
  return {"verdict": verdict, "wall_s": round(time.monotonic() - start, 1)}


def table(games: dict, arms: int, gap: float) -> dict[str, dict[str, float | None]]:
  """A row a player; None where there is nothing to fit: one arm, a gap of 0, which stands for the
  gaps of contexts too, each of which has its own."""
  wins = regret.win_rates({k: -g.lost.sum(axis=1)[None] for k, g in games.items()})
  rows = {}
  for name, g in games.items():
    mean, error = regret.curve(regret.regret(g.lost))
    fit = regret.fit(mean, gap) if arms > 1 and gap > 0 else None
    values = (
      mean[-1],
      error[-1],
      fit and fit.alpha,
      fit and fit.beta,
      regret.opt_frac(g.lost)[:, -1].mean(),
      regret.min_frac(g.action, arms)[:, -1].mean(),
      regret.suffix_fail(g.lost).mean(),
      None if np.isnan(wins[name]) else wins[name],
    )
    rounded = (None if v is None else round(float(v), 4) for v in values)
    rows[name] = dict(zip(COLUMNS, rounded, strict=True))
  return rows


def markdown(rows: dict[str, dict]) -> str:
  """One table; regret with its standard error, the fit lambda log(T)^alpha / gap + beta T + c."""
  lines = ["| player | regret | " + " | ".join(COLUMNS[2:]) + " |"]
  lines.append("|" + " --- |" * len(COLUMNS))
  for name, row in rows.items():
    shown = ["–" if row[k] is None else f"{row[k]:.2f}" for k in COLUMNS[2:]]
    first = f"{row['regret']:.2f} ± {row['s.e.']:.2f}"
    lines.append(f"| {TITLES[name]} | {first} | " + " | ".join(shown) + " |")
  return "\n".join(lines) + "\n"


def draw(games: dict, path: Path) -> None:
  """Regret against pulls, mean and standard error; oracles in grey. Needs matplotlib."""
  if (figure := in_context.figure(6.4, 4.2)) is None:
    return
  colours = iter(("#2266b3", "#c25a12", "#0f7f68", "#8348ad", "#b03060", "#9a7400"))
  dashes = iter(("-", "--", "-.", ":"))
  axes = figure.subplots()
  for name, g in games.items():
    mean, error = regret.curve(regret.regret(g.lost))
    colour, dash = ("0.45", next(dashes)) if name in ORACLES else (next(colours), "-")
    at = np.arange(1, len(mean) + 1)
    axes.plot(at, mean, label=TITLES[name], lw=1.6, color=colour, ls=dash)
    axes.fill_between(at, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
  axes.set_xlabel("pulls")
  axes.set_ylabel("regret, mean over games and its standard error")
  axes.set_xlim(1, claims.horizon(games))
  axes.set_ylim(bottom=0)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, fontsize=8)
  figure.savefig(path)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
