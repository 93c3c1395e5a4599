"""Online evaluation of an in-context learner: episodes a second, ours and PyTorch's.

  python -m experiments.bench in_context [--rounds=3] [--tasks=2048] [--out=FILE]

DPT (arXiv:2306.14892) on 5-armed Gaussian bandits, 100 pulls an episode, 4 layers of 32 with 4
heads, the same weights in both. Ours is one compiled program with a key-value cache; the peer is
the design of the published code, which passes the whole context through GPT-2 again at every pull
(peers/torch_dpt.py; TRL_PYTHON names its interpreter). It is timed in several forms, because the
paper's code does not say which batches the published evaluation makes: 200 bandits at once (as many
as that evaluation has), 32, one by one, and in the first round all `--tasks`. `peer_ratio` is
against the fastest of them, `peer_ratio_one_by_one` against the third, `peer_ratio_200` is
ours at 200 against theirs. Ours is one program for all tasks, 512 of which step together; "at once"
is all of them together, whose caches do not fit the processor's.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from experiments.bench import table
from experiments.bench.runner import environment, interpreters, launch, machine
from grpo_jax.errors import UserError

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
OURS, PEER = "experiments.bench.ours_in_context", "experiments.bench.peers.torch_dpt"
FEW = 200
SAME = 1e-4  # in logits


def arguments(argv):
  parser = argparse.ArgumentParser(
    prog="python -m experiments.bench in_context", allow_abbrev=False
  )
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--tasks", type=int, default=2048, help="bandits at once")
  parser.add_argument("--quick", action="store_true", help="1 round of small batches: a smoke test")
  parser.add_argument("--out", type=Path, default=None)
  a = parser.parse_args(argv)
  if a.quick:
    a.rounds, a.tasks = 1, min(a.tasks, 32)
  if min(a.rounds, a.tasks) < 1:
    raise UserError(f"--rounds={a.rounds} --tasks={a.tasks}: give at least 1")
  a.out = a.out or (
    Path("runs/bench/in_context.json") if a.quick else RESULTS / "in_context_cpu.json"
  )
  return a


def arms(a, peer: str) -> dict[str, tuple[str, str, list[str]]]:
  """{name: (interpreter, module, flags)}"""
  few = min(FEW, a.tasks)
  ours = lambda tasks, *flags: (sys.executable, OURS, [f"--tasks={tasks}", *flags])
  theirs = lambda *flags: (peer, PEER, list(flags))
  return {
    "ours": ours(a.tasks),
    "ours, at once": ours(a.tasks, f"--part={a.tasks}"),
    f"ours, {FEW}": ours(few, "--repeats=20"),
    "peer, at once": theirs(f"--tasks={a.tasks}", "--repeats=1"),
    f"peer, {FEW}": theirs(f"--tasks={few}", "--repeats=2"),
    "peer, 32": theirs("--tasks=32", "--repeats=5"),
    "peer, one by one": theirs("--tasks=1", "--calls=2", "--repeats=3"),
  }


def cell(runs: list[dict]) -> dict:
  """One arm over its rounds: medians of the runs' medians."""
  return {
    "runs": len(runs),
    **{k: table.middle(runs, k, 2) for k in ("per_s", "per_cpu_s", "regret")},
    "per_s_runs": [r["per_s"] for r in runs],
    "per_s_best": max(r["per_s_best"] for r in runs),
    "peak_mb": max(r["peak_mb"] for r in runs),
    "neighbours": max(r["neighbours"] for r in runs),
    **{k: runs[0][k] for k in ("tasks", "versions")},
    **({"compile_s": table.middle(runs, "compile_s", 2)} if "compile_s" in runs[0] else {}),
  }


def final(cells: dict, runs: list[dict]) -> dict:
  """Ratios of episodes a second, ours / theirs; None where a side failed."""

  def over(one: str, others: list[str], key: str = "per_s"):
    found = [cells[o][key] for o in others if o in cells]
    return round(cells[one][key] / max(found), 1) if one in cells and found else None

  peers = [name for name in cells if name.startswith("peer")]
  compared = [r for r in runs if "gap" in r]
  return {
    "quiet": all(c["neighbours"] <= table.QUIET for c in cells.values()),
    "peer_ratio": over("ours", peers),
    "peer_ratio_best": over("ours", peers, "per_s_best"),
    "peer_ratio_cpu": over("ours", peers, "per_cpu_s"),
    "peer_ratio_200": over(f"ours, {FEW}", [f"peer, {FEW}"]),
    "peer_ratio_one_by_one": over("ours", ["peer, one by one"]),
    "episodes_per_s": cells["ours"]["per_s"] if "ours" in cells else None,
    "compile_s": cells["ours"]["compile_s"] if "ours" in cells else None,
    "logit_gap": max((r["gap"] for r in compared), default=None),
    "same_arms": min((r["same_arms"] for r in compared), default=None),
    "same_model": bool(compared) and all(r["gap"] < SAME for r in compared),
  }


def lines(cells: dict) -> str:
  head = "arm,at once,episodes/s,best,by CPU s,compile s,peak MB,regret,neighbours"
  rows = [[*head.split(",")]]
  for name, c in cells.items():
    row = [name, str(c["tasks"]), f"{c['per_s']:.1f}", f"{c['per_s_best']:.1f}"]
    row += [f"{c['per_cpu_s']:.1f}", f"{c['compile_s']:.1f}" if "compile_s" in c else "-"]
    rows.append([*row, f"{c['peak_mb']:.0f}", f"{c['regret']:.1f}", f"{c['neighbours']:.0%}"])
  return table.aligned(rows)


def main(argv: list[str]) -> dict:
  a = arguments(argv)
  env, before, runs = environment(hugepages=False), machine(), []
  found = arms(a, interpreters(["trl"])["trl"])
  names = list(found)
  with tempfile.TemporaryDirectory() as scratch:
    made = launch(sys.executable, OURS, [scratch, "--export"], env)
    if "error" in made:
      raise UserError(f"the weights could not be written: {made['error']}")
    for round_ in range(a.rounds):
      turn = round_ % len(names)
      for name in names[turn:] + names[:turn]:
        if round_ and name == "peer, at once":
          continue
        python, module, flags = found[name]
        got = launch(python, module, [scratch, *flags], env)
        runs.append({"arm": name} | got | {"round": round_})
        told = got.get("error") or f"{got['per_s']} episodes/s, others {got['neighbours']:.0%}"
        print(f"round {round_ + 1}/{a.rounds}  {name}: {told}", flush=True)
  good = {n: [r for r in runs if r["arm"] == n and "error" not in r] for n in names}
  cells = {name: cell(mine) for name, mine in good.items() if mine}
  last = final(cells, runs)
  a.out.parent.mkdir(parents=True, exist_ok=True)
  report = {"machine": before, "rounds": a.rounds, "cells": cells, "final": last, "runs": runs}
  a.out.write_text(json.dumps(report, indent=1) + "\n")
  print("\n" + lines(cells))
  if not last["quiet"]:
    print("warning: other processes ran beside these: the ratios are not to be published")
  print(f"\nall runs: {os.path.relpath(a.out)}")
  print("final: " + json.dumps(last))
  return last
