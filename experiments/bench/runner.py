"""Side by side: every framework in its own process, interleaved, one JSON file and one table.

TRL_PYTHON and TUNIX_PYTHON name the interpreters of the peers' environments (`make bench` does).
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.bench import record, table, tiny, work
from experiments.bench.decode import arguments as decode_arguments
from grpo_jax.errors import UserError

ROOT = Path(__file__).parents[2]
MODULES = {
  "grpo_jax": "experiments.bench.ours",
  "trl": "experiments.bench.peers.trl_grpo",
  "tunix": "experiments.bench.peers.tunix_grpo",
}
PARTS = (*MODULES, "decode", "tiny")


def arguments(argv):
  parser = argparse.ArgumentParser(prog="python -m experiments.bench main", allow_abbrev=False)
  parser.add_argument("--rounds", type=int, default=3, help="interleaved runs of each")
  parser.add_argument("--steps", type=int, default=6, help="timed steps a run")
  parser.add_argument("--lengths", default="64,512", help="prompt tokens")
  parser.add_argument("--only", default="", help=f"of {','.join(PARTS)}; empty: all")
  parser.add_argument("--quick", action="store_true", help="1 round of 2 steps: a smoke test")
  parser.add_argument("--hugepages", action="store_true", help="for all: glibc.malloc.hugetlb=1")
  parser.add_argument("--out", type=Path, default=None)
  a = parser.parse_args(argv)
  if a.quick:
    a.rounds, a.steps = 1, 2
  a.out = a.out or ROOT / default_out(a.only, a.quick)
  a.lengths = [int(n) for n in a.lengths.split(",")]
  a.only = a.only.split(",") if a.only else [*PARTS]
  for part in a.only:
    if part not in PARTS:
      raise UserError(f"--only={part}: use some of {', '.join(PARTS)}")
  if not set(a.only) & set(MODULES):
    a.lengths = []
  return a


def default_out(only: str, quick: bool) -> str:
  """A run of some parts never replaces the results of a whole one."""
  if quick:
    return "runs/bench/quick.json"
  kept = {"": "benchmarks/results/bench_cpu.json", "tiny": "benchmarks/results/tiny_cpu.json"}
  return kept.get(only, f"runs/bench/{only.replace(',', '_')}.json")


def interpreters(only) -> dict[str, str]:
  """The Python of each framework; UserError names the variable that is missing."""
  out = {"grpo_jax": sys.executable}
  for part in only:
    if part != "grpo_jax":
      variable = "TUNIX_PYTHON" if part == "tunix" else "TRL_PYTHON"
      path = os.environ.get(variable, "")
      if not Path(path).is_file():
        raise UserError(f"{variable}={path!r}: no such interpreter; run `make bench`, or set it")
      # Made absolute without following links: the link is what makes it that environment's.
      out["tunix" if part == "tunix" else "trl"] = os.path.abspath(path)
  return out


def environment(hugepages: bool) -> dict[str, str]:
  """No compilation cache and no flags of the caller, so that compile times are those of a user."""
  dropped = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "PYTHONPATH", "GLIBC_TUNABLES")
  env = {k: v for k, v in os.environ.items() if k not in dropped}
  env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  return env | ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if hugepages else {})


def launch(python: str, module: str, args: list, env: dict, timeout: int = 3600) -> dict:
  """The JSON line of a process; {"error": ...} if it failed."""
  command = [python, "-m", module, *map(str, args)]
  try:
    done = subprocess.run(
      command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout
    )
  except subprocess.TimeoutExpired:
    return {"error": f"no result after {timeout} s"}
  if done.returncode:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": (lines or ["no message"])[-1][:300]}
  try:
    return record.last_json(done.stdout)
  except ValueError as error:
    return {"error": str(error)}


def machine() -> dict:
  cpu = platform.processor()
  info = Path("/proc/cpuinfo")
  if info.is_file():
    names = [x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x]
    cpu = names[0] if names else cpu
  git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
  commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
  return {
    "cpu": cpu,
    "cores": os.cpu_count(),
    "date": datetime.date.today().isoformat(),
    "commit": commit or None,
    "load_before": [round(x, 2) for x in os.getloadavg()],
  }


def time_steps(a, pythons, env, note) -> tuple[list[dict], list[dict]]:
  """(runs, matmuls). The order turns by one each round, so that no framework always goes first."""
  runs, matmuls = [], []
  names = [n for n in MODULES if n in a.only]
  for round_ in range(a.rounds):
    for length in a.lengths:
      args = ["--prompt", length, "--steps", a.steps]
      matmul = launch(sys.executable, "experiments.bench.matmul", args, env)
      matmuls.append(matmul | {"round": round_, "prompt": length})
      turn = round_ % max(len(names), 1)
      for name in names[turn:] + names[:turn]:
        got = launch(pythons[name], MODULES[name], args, env)
        runs.append({"framework": name, "prompt": length} | got | {"round": round_})
        note(runs, matmuls)
        if "error" in got:
          print(f"{name} at {length}: failed: {got['error']}", flush=True)
        else:
          print(
            f"round {round_ + 1}/{a.rounds}  prompt {length}  {name}: {got['step_s']:.2f} s a step "
            f"(best {got['step_min_s']:.2f}), {got['peak_mb']:.0f} MB, "
            f"others {got['neighbours']:.0%}",
            flush=True,
          )
  return runs, matmuls


def time_decode(a, pythons, env, matmuls: list[dict]) -> list[dict]:
  """Interleaved runs of both; transformers also on all cores if its default is fewer."""
  peer, runs = "experiments.bench.peers.transformers_decode", []
  with tempfile.TemporaryDirectory() as scratch:
    folder = str(Path(scratch) / "smollm2")
    made = launch(sys.executable, "experiments.bench.decode", [folder, "--export"], env)
    if "error" in made:
      return [made]
    args = [folder, "--repeats", 1 if a.quick else 2]
    for round_ in range(a.rounds):
      matmuls.append(launch(sys.executable, "experiments.bench.matmul", [], env))
      got = [launch(sys.executable, "experiments.bench.decode", args, env)]
      got.append(launch(pythons["trl"], peer, args, env))
      if got[1].get("threads", os.cpu_count()) != os.cpu_count():
        more = launch(pythons["trl"], peer, [*args, "--threads", os.cpu_count()], env)
        got.append(more | {"framework": "transformers, all cores"})
      for run in got:
        speed = run.get("error") or f"{run['tokens_per_s']} tokens/s"
        print(f"round {round_ + 1}/{a.rounds}  decode  {run.get('framework')}: {speed}", flush=True)
      runs += [run | {"round": round_} for run in got]
  return runs


def sum_decode(runs: list[dict], bound: float) -> dict:
  """One entry a framework, the ratios ours / theirs (the faster of theirs), and agreement."""
  a = decode_arguments(["-"])
  flops = work.forward(work.SMOLLM2, prompts=a.prompts, group=a.group, prompt=a.prompt, new=a.new)
  good = [r for r in runs if "error" not in r]
  found = {}
  for name in dict.fromkeys(r["framework"] for r in good):
    mine = sorted((r for r in good if r["framework"] == name), key=lambda r: r["tokens_per_s"])
    middle = dict(mine[len(mine) // 2])
    middle["tokens_per_s_best"] = max(r["tokens_per_s_best"] for r in mine)
    found[name] = middle | {"share": table.share(flops, middle["whole_s"], bound)}
  out: dict = {"found": found}
  theirs = [v for k, v in found.items() if k != "grpo_jax"]
  if "grpo_jax" in found and theirs:
    for key, speed in (
      ("decode_transformers", "tokens_per_s"),
      ("decode_transformers_no_prompt", "decode_tokens_per_s"),
    ):
      out[key] = round(found["grpo_jax"][speed] / max(t[speed] for t in theirs), 2)
    out["same_greedy_tokens"] = all(t["greedy"] == found["grpo_jax"]["greedy"] for t in theirs)
  return out


def summarize(a, runs, matmuls, decode_runs, tiny_runs) -> dict:
  bound = table.bound(m for m in matmuls if "error" not in m)
  cells: dict = {}
  shares, flops = {}, {}
  shape = work.llama(record.arguments([]))
  for length in a.lengths:
    flops[length] = work.step(shape, prompts=2, group=8, prompt=length, new=64)
    for name in MODULES:
      mine = [r for r in runs if (r["framework"], r["prompt"]) == (name, length)]
      c = table.cell([r for r in mine if "error" not in r])
      cells.setdefault(name, {})[length] = c
      if c is not None:
        shares[f"{name}_{length}"] = table.share(flops[length], c["step_s"], bound)
  decode = sum_decode(decode_runs, bound)
  for name, c in decode["found"].items():
    shares["decode_" + name.replace(", ", "_").replace(" ", "_")] = c["share"]
  final, small = table.final(cells, shares, decode), None
  if "tiny" in a.only:
    small = tiny.summarize(tiny_runs, bound)
    quiet = final["quiet"] and table.quiet(small["cells"])
    final |= small.pop("final") | {"quiet": quiet}
  return {
    "bound_gflops": bound,
    "necessary_gflop": {n: round(f / 1e9, 1) for n, f in flops.items()},
    "cells": cells,
    "decode": decode,
    "final": final,
    "shares": shares,
    "tiny": small,
  }


def main(argv: list[str]) -> None:
  a = arguments(argv)
  pythons, env = interpreters(a.only), environment(a.hugepages)
  report = {"machine": machine(), "rounds": a.rounds, "steps": a.steps, "hugepages": a.hugepages}

  def save(**more) -> None:
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps(report | more, indent=1) + "\n")

  runs, matmuls = time_steps(a, pythons, env, lambda r, m: save(runs=r, matmuls=m))
  decode_runs = time_decode(a, pythons, env, matmuls) if "decode" in a.only else []
  tiny_runs: list[dict] = []
  if "tiny" in a.only:
    note = lambda small: save(runs=runs, matmuls=matmuls, decode_runs=decode_runs, tiny_runs=small)
    tiny_runs = tiny.time_runs(a, pythons, env, launch, matmuls, note)
  found = summarize(a, runs, matmuls, decode_runs, tiny_runs)
  save(**found, runs=runs, matmuls=matmuls, decode_runs=decode_runs, tiny_runs=tiny_runs)
  needs = [f"{n} tokens: {f} GFLOP a step" for n, f in found["necessary_gflop"].items()]
  bound = f"matmul bound {found['bound_gflops']:.0f} GFLOP/s in float32"
  print("\n" + "; ".join([bound, *needs]))
  if a.lengths:
    print(table.steps(found["cells"], found["shares"]))
  if not found["final"]["quiet"]:
    print("warning: other processes ran beside these: the ratios are not to be published")
  if found["decode"]["found"]:
    print("\n" + table.decodes(found["decode"]["found"]))
  if found["tiny"]:
    print("\n" + tiny.lines(found["tiny"]["cells"]))
  print(f"\nall runs: {os.path.relpath(a.out)}")
  print("final: " + json.dumps(found["final"]))
