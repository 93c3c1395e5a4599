"""The small model: our fused loop against TRL, at sizes where a framework is all overhead.

Two layers of 64, vocabulary 64, 8 prompt and 8 new tokens, 8 completions for each of 32 and of 4
prompts. Ours is `ours_fused.py`, the peer `peers/trl_grpo.py` at the same sizes.
"""

import sys

from experiments.bench import record, table, work

SIZES = {
  **{"prompt": 8, "new": 8, "group": 8},
  **{"hidden": 64, "layers": 2, "heads": 4, "ffn": 128, "vocab": 64},
}
PROMPTS = (32, 4)
STEPS = {"grpo_jax": 100, "trl": 40}  # of a run; grpo_jax makes three runs in its process
WARMUP = 5


def flags(prompts: int, **more: int) -> list[str]:
  return [f"--{k}={v}" for k, v in {**SIZES, "prompts": prompts, **more}.items()]


def time_runs(a, pythons, env, launch, matmuls: list[dict], note) -> list[dict]:
  """Runs of both, interleaved; who goes first changes with the round."""
  runs: list[dict] = []
  modules = {"grpo_jax": "experiments.bench.ours_fused", "trl": "experiments.bench.peers.trl_grpo"}
  for round_ in range(a.rounds):
    for prompts in PROMPTS:
      args = flags(prompts)
      matmuls.append(launch(sys.executable, "experiments.bench.matmul", args, env))
      turn = round_ % len(modules)
      names = [*modules]
      for name in names[turn:] + names[:turn]:
        steps = 2 if a.quick else STEPS[name]
        args = flags(prompts, steps=steps, warmup=WARMUP)
        got = launch(pythons[name], modules[name], args, env)
        runs.append({"framework": name, "prompts": prompts} | got | {"round": round_})
        note(runs)
        told = got.get("error") or (
          f"{1 / got['step_s']:.1f} updates/s (best {1 / got['step_min_s']:.1f}), "
          f"{got['peak_mb']:.0f} MB, others {got['neighbours']:.0%}"
        )
        print(f"round {round_ + 1}/{a.rounds}  tiny {prompts} x 8  {name}: {told}", flush=True)
  return runs


def cell(runs: list[dict]) -> dict | None:
  """As `table.cell`, of what the fused loop has too: it is one program and has no phases."""
  if not runs:
    return None
  step = table.middle(runs, "step_s", 6)
  found = {
    "runs": len(runs),
    "step_s": step,
    "step_s_runs": [r["step_s"] for r in runs],
    "best_s": min(r["step_min_s"] for r in runs),
    "updates_per_s": round(1 / step, 1),
    "cpu_s": table.middle(runs, "cpu_s", 6),
    "first_step_s": table.middle(runs, "first_step_s"),
    "peak_mb": max(r["peak_mb"] for r in runs),
    "neighbours": max(r["neighbours"] for r in runs),
  }
  compiled = [key for key in ("compile_s", "compile_cpu_s") if all(key in r for r in runs)]
  return found | {key: table.middle(runs, key) for key in compiled}


def summarize(runs: list[dict], bound: float) -> dict:
  """{"cells": {framework: {prompts: cell}}, "final": keys of the last line}"""
  shape = work.llama(record.arguments(flags(1)))
  cells: dict = {}
  final: dict = {}
  for name in STEPS:
    for prompts in PROMPTS:
      mine = [r for r in runs if (r["framework"], r["prompts"]) == (name, prompts)]
      c = cell([r for r in mine if "error" not in r])
      cells.setdefault(name, {})[prompts] = c
      if c is not None:
        sizes = {"prompts": prompts, "group": SIZES["group"]}
        flops = work.step(shape, **sizes, prompt=SIZES["prompt"], new=SIZES["new"])
        c["share"] = final[f"matmul_share_{name}_tiny_{prompts}"] = table.share(
          flops, c["step_s"], bound
        )
  for prompts in PROMPTS:
    ours, theirs = cells["grpo_jax"][prompts], cells["trl"][prompts]
    final[f"trl_tiny_{prompts}"] = table.ratio(theirs, ours)
    final[f"trl_tiny_{prompts}_best"] = table.ratio(theirs, ours, "best_s")
    final[f"trl_tiny_{prompts}_cpu"] = table.ratio(theirs, ours, "cpu_s")
    final[f"trl_tiny_{prompts}_memory"] = table.ratio(theirs, ours, "peak_mb")
    if ours is not None:
      final |= {
        f"updates_per_s_tiny_{prompts}": ours["updates_per_s"],
        f"compile_s_tiny_{prompts}": ours["compile_s"],
        f"peak_mb_tiny_{prompts}": ours["peak_mb"],
      }
  return {"cells": cells, "final": final}


def lines(cells: dict) -> str:
  head = "small model  framework,updates/s,best,CPU ms,first step,compile,peak MB,share,x ours"
  rows = [[*head.split(",")]]
  for prompts in PROMPTS:
    ours = cells["grpo_jax"][prompts]
    for name in STEPS:
      c = cells[name][prompts]
      if c is None:
        continue
      row = [f"{prompts:>7} x 8  {name}", f"{c['updates_per_s']:.1f}", f"{1 / c['best_s']:.1f}"]
      row += [f"{1000 * c['cpu_s']:.1f}", f"{c['first_step_s']:.1f}"]
      row += [f"{c['compile_s']:.1f}" if "compile_s" in c else "-", f"{c['peak_mb']:.0f}"]
      row += [f"{c['share']:.1%}", "-" if ours is None else f"{table.ratio(c, ours):.2f}"]
      rows.append(row)
  return table.aligned(rows)
