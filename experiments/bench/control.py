"""PPO on gymnax's CartPole: environment steps a second and learning curves, ours and a peer's.

  python -m experiments.bench.control [--rounds=5] [--seeds=10] [--out=FILE]

Each is one compiled program of 5e5 steps, two 64-tanh towers, 4 epochs an update of 512 steps:

  ours          configs/cartpole.py: 16 environments x 32 steps, 2 mini-batches
  ours 4x128    the peer's setting: 4 environments x 128 steps, 4 mini-batches, learning rate 2.5e-4
  peer 4x128    experiments/bench/control_peer.py, PureJaxRL's design, written anew, as published
  peer 16x32    the same with more environments

Timed are whole runs of one seed on one device, interleaved, the order turning by one each round,
after one run that is not counted; wall time and processor time. `taskset -c 0` before the command
keeps XLA to one thread. Then `--seeds` runs of each: how many environment steps until the mean of
the last episodes' returns over ten updates is at least 475 (where Gym calls CartPole-v1 solved),
and its value at the end. `neighbours`: the part of the machine that other processes took; where it
is above 0.1 the speeds are not to be published.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import cartpole
from experiments.bench import control_peer, record
from experiments.bench.runner import machine
from grpo_jax import methods
from grpo_jax.envs import control as envs
from grpo_jax.train.programs import control

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
PER_UPDATE = 512
SOLVED, WINDOW = 475.0, 10


def arguments(argv=None):
  parser = argparse.ArgumentParser(prog="python -m experiments.bench.control", allow_abbrev=False)
  parser.add_argument("--env", default="CartPole-v1")
  parser.add_argument("--updates", type=int, default=976)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seeds", type=int, default=10)
  parser.add_argument("--out", type=Path, default=RESULTS / "control_cpu.json")
  return parser.parse_args(argv)


def programs(a) -> dict:
  """{name: run(seed) -> (returns f32[updates], all else that the run measures)}"""
  c: Any = cartpole.get_config()
  env, method = envs.get(a.env), methods.get(c.method, **c.method_args.to_dict())

  def ours(**changes):
    fields = {**c.plan.to_dict(), "updates": a.updates, "eval_every": 0, "eval_episodes": 1}
    run = control.make_run(env, method, control.Sizes(**{**fields, **changes}))

    def measured(seed):
      curves = run(seed)[1]
      return curves.train["return"], curves

    return measured

  def peer(number, steps):
    run = control_peer.make_run(
      a.env, control_peer.Sizes(updates=a.updates, envs=number, steps=steps)
    )
    return lambda seed: (run(seed), ())

  return {
    "ours": ours(),
    "ours 4x128": ours(envs=4, steps=128, mini=4, lr=2.5e-4),
    "peer 4x128": peer(4, 128),
    "peer 16x32": peer(16, 32),
  }


def compile_all(found: dict) -> tuple[dict, dict]:
  compiled, seconds = {}, {}
  for name, run in found.items():
    begun = time.perf_counter()
    compiled[name] = jax.jit(run).lower(jax.numpy.int32(0)).compile()
    seconds[name] = round(time.perf_counter() - begun, 2)
  return compiled, seconds


def timed(run, seed: int) -> tuple[float, float, np.ndarray]:
  """(wall seconds, processor seconds, returns)"""
  begun = time.perf_counter(), time.process_time()
  out = jax.block_until_ready(run(jax.numpy.int32(seed)))
  return time.perf_counter() - begun[0], time.process_time() - begun[1], np.asarray(out[0])


def learning(curves: np.ndarray, per_update: int = PER_UPDATE) -> dict:
  """Of [seeds, updates] mean returns."""
  kernel = np.ones(WINDOW) / WINDOW
  smooth = np.stack([np.convolve(c, kernel, mode="valid") for c in curves])
  reached = [
    int((np.flatnonzero(s >= SOLVED)[0] + WINDOW) * per_update) if np.any(s >= SOLVED) else None
    for s in smooth
  ]
  at = np.linspace(0, curves.shape[1] - 1, 21).round().astype(int)
  return {
    "steps_to_475": reached,
    "end": [round(float(x), 1) for x in smooth[:, -1]],
    "best": [round(float(x), 1) for x in smooth.max(axis=1)],
    "curve_steps": [int((i + 1) * per_update) for i in at],
    "curve_mean": [round(float(x), 1) for x in curves[:, at].mean(axis=0)],
    "curve_lowest": [round(float(x), 1) for x in curves[:, at].min(axis=0)],
  }


def main(argv=None) -> dict:
  a = arguments(argv)
  before = machine()
  compiled, compile_s = compile_all(programs(a))
  names = list(compiled)
  curves: dict = {name: [timed(run, 0)[2]] for name, run in compiled.items()}  # warm up
  wall: dict = {name: [] for name in names}
  cpu: dict = {name: [] for name in names}
  begun = time.perf_counter(), record.busy_seconds(), time.process_time()
  for i in range(max(a.rounds, a.seeds)):
    turn = i % len(names)
    for name in names[turn:] + names[:turn]:
      *seconds, curve = timed(compiled[name], i)
      if i < a.rounds:
        wall[name].append(round(seconds[0], 4))
        cpu[name].append(round(seconds[1], 4))
      if 0 < i < a.seeds:
        curves[name].append(curve)
  spent = time.perf_counter() - begun[0]
  others = record.busy_seconds() - begun[1] - (time.process_time() - begun[2])
  actions = a.updates * PER_UPDATE
  rows = {
    name: {
      "steps_per_s": round(actions / statistics.median(wall[name])),
      "steps_per_s_best": round(actions / min(wall[name])),
      "steps_per_cpu_s": round(actions / statistics.median(cpu[name])),
      "steps_per_cpu_s_best": round(actions / min(cpu[name])),
      "wall_s": wall[name],
      "cpu_s": cpu[name],
      "compile_s": compile_s[name],
      **learning(np.stack(curves[name])),
    }
    for name in names
  }
  over = lambda one, other: {
    k: round(rows[one][k] / rows[other][k], 3) for k in rows[one] if k.startswith("steps_per")
  }
  result = {
    **before,
    "neighbours": round(max(others, 0.0) / (spent * (os.cpu_count() or 1)), 3),
    "cores_used": len(os.sched_getaffinity(0)),
    "jax": jax.__version__,
    "env": a.env,
    "env_steps": actions,
    "ours_over_peer": over("ours", "peer 4x128"),
    "ours_over_peer_with_its_setting": over("ours 4x128", "peer 4x128"),
    "ours_over_peer_16x32": over("ours", "peer 16x32"),
    "rows": rows,
  }
  a.out.parent.mkdir(parents=True, exist_ok=True)
  a.out.write_text(json.dumps(result, indent=1) + "\n")
  for name, row in rows.items():
    print(f"{name}: {row['steps_per_s']} steps/s, end {row['end']}, to 475 {row['steps_to_475']}")
  print(json.dumps({k: v for k, v in result.items() if k != "rows"}))
  return result


if __name__ == "__main__":
  main()
