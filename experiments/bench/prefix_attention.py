"""A GRPO gradient step with the prompt computed once a group, against once a completion (paper 59).

Both forms go through the same forward pass, loss and gradient: the repeated one gets every prompt G
times, in groups of one. Where G rows would keep more than 3 GB for the backward pass (long prompts,
SmolLM2), the repeated form takes as many rows at a time as fit and sums the gradients, as a user
would: exact, and nothing is computed twice. What is checked: equal losses and gradients; how close
the wall-clock gain comes to the ratio of the arithmetic, and that ratio in the compiled programs
(compiled.py says what they count).

Two models: a small one (`--hidden`, `--layers`) over `--prompt` x `--new` x `--group`, and random
weights of SmolLM2's shape over the cells of `--smollm2`.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import compiled, record, table, work
from experiments.bench.compiled import config_of, gradient
from experiments.bench.runner import machine
from grpo_jax.errors import UserError
from grpo_jax.models import decoder
from grpo_jax.types import Batch, Rollouts

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


SAVED_BYTES = 3e9  # of the repeated form at a time, by `rows_at_once`


def arguments(argv):
  parser = argparse.ArgumentParser(
    prog="python -m experiments.bench prefix_attention", allow_abbrev=False
  )
  parser.add_argument("--prompt", default="256,1024,4096", help="empty: no small model")
  parser.add_argument("--new", default="32,128")
  parser.add_argument("--group", default="4,8,16")
  parser.add_argument(
    "--smollm2", default="256x64x8,1024x64x8", help="prompt x new x group; empty: none"
  )
  parser.add_argument("--repeats", type=int, default=5, help="timed pairs of steps, at most")
  parser.add_argument("--seconds", type=float, default=30, help="a cell: fewer repeats, at least 1")
  parser.add_argument("--hidden", type=int, default=256)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--vocab", type=int, default=1024)
  parser.add_argument("--out", type=Path, default=RESULTS / "prefix_attention_cpu.json")
  a = parser.parse_args(argv)
  numbers = lambda text, between: [int(n) for n in text.split(between)] if text else []
  for name in ("prompt", "new", "group"):
    try:
      setattr(a, name, numbers(getattr(a, name), ","))
    except ValueError as error:
      raise UserError(f"--{name}: give numbers with commas between them") from error
  try:
    a.smollm2 = [tuple(numbers(c, "x")) for c in a.smollm2.split(",") if c]
    assert all(len(cell) == 3 for cell in a.smollm2)
  except (ValueError, AssertionError) as error:
    raise UserError("--smollm2: give cells as 256x64x8 with commas between them") from error
  heads = max(a.hidden // 32, 1)
  a.small = work.Shape(a.hidden, a.layers, heads, heads, 32, 4 * a.hidden, a.vocab)
  a.cells = [("small", p, t, g) for p in a.prompt for t in a.new for g in a.group]
  a.cells += [("smollm2", *cell) for cell in a.smollm2]
  if not a.cells:
    raise UserError("--prompt= --smollm2=: nothing to measure; give lengths to one of them")
  return a


def rows_at_once(s: work.Shape, prompt: int, new: int, group: int) -> int:
  """How many of the G repeated rows go through the model at a time, the rest after them.

  A divisor of G, as large as fits `SAVED_BYTES`: what the layers keep for the backward pass
  (models/decoder.py: q, k, v, mixed values, gate, up, input) and four arrays of the scores of one
  block of queries, all float32.
  """
  kept = 2 * s.hidden + 2 * (s.heads + s.kv_heads) * s.head_dim + 2 * s.ffn
  saved = 4 * s.layers * kept * (prompt + new)
  scores = 4 * 4 * s.heads * max(128, prompt // 8) * prompt
  fits = [n for n in range(1, group + 1) if group % n == 0 and n * (saved + scores) <= SAVED_BYTES]
  return max(fits, default=1)


def batches(vocab: int, prompt: int, new: int, group: int) -> tuple[Rollouts, Batch, Batch]:
  """One prompt and its completions: shared, and with the prompt repeated."""
  rng = np.random.default_rng(0)
  ids = rng.integers(0, vocab, (1, prompt)).astype(np.int32)
  ones = np.ones((1, group), bool)
  small: dict[str, Any] = {
    "prompt": np.zeros(1, np.int32),
    "reward": rng.random((1, group)).astype(np.float32),
    "alive": ones,
    "correct": ones,
    "truncated": ~ones,
    "length": np.full((1, group), new, np.int32),
  }
  large: dict[str, Any] = {
    "tokens": rng.integers(0, vocab, (group, new)).astype(np.int32),
    "mask": np.ones((group, new), np.float32),
    "unit": np.zeros((group, new), np.int32),
    "unit_mask": np.ones((group, 1), np.float32),
    "owner": np.arange(group, dtype=np.int32)[:, None],
    "prompt_tokens": ids,
    "prompt_length": np.full(1, prompt, np.int32),
  }
  rollouts, shared = Rollouts(**small), Batch(**large)
  repeated = shared.replace(
    prompt_tokens=np.repeat(ids, group, axis=0), prompt_length=np.full(group, prompt, np.int32)
  )
  return jax.device_put((rollouts, shared, repeated))


def distance(left, right) -> float:
  """|left - right| / |left| over all parameters together."""
  square = lambda tree: sum(float(jnp.sum(x * x)) for x in jax.tree.leaves(tree))
  return (square(jax.tree.map(jnp.subtract, left, right)) / square(left)) ** 0.5


def formula_ratio(s: work.Shape, prompt: int, new: int, group: int) -> float:
  size = {"prompts": 1, "group": group, "prompt": prompt, "new": new}
  return work.repeated(s, **size) / work.forward(s, **size)


def measure(a, model: str, prompt: int, new: int, group: int) -> dict:
  s = work.SMOLLM2 if model == "smollm2" else a.small
  config, at_once = config_of(s, prompt + new), rows_at_once(s, prompt, new, group)
  params = decoder.init(config, jax.random.key(0))
  rollouts, *forms = batches(s.vocab, prompt, new, group)
  steps = gradient(config), gradient(config, pieces=group // at_once)
  (loss, grads), (loss_repeated, grads_repeated) = (
    step(params, rollouts, b) for step, b in zip(steps, forms, strict=True)
  )
  gaps = {
    "loss_gap": abs(float(loss - loss_repeated)),
    "gradient_gap": distance(grads, grads_repeated),
  }
  del grads, grads_repeated
  timers = record.Repeats(), record.Repeats()
  begun = time.perf_counter()
  while len(timers[0].wall) < a.repeats:
    for timer, step, batch in zip(timers, steps, forms, strict=True):
      timer(lambda step=step, batch=batch: jax.block_until_ready(step(params, rollouts, batch))[0])
    spent = time.perf_counter() - begun
    if spent * (1 + 1 / len(timers[0].wall)) > a.seconds:
      break
  shared, repeated = timers
  medians = [statistics.median(t.wall) for t in timers]
  counted = compiled.flops(s, prompt, new, rollouts, forms)
  one_layer = dataclasses.replace(s, layers=1)
  size = {"group": group, "prompt": prompt, "new": new}
  executed = [compiled.explained(s, **size, repeated=r) for r in (False, True)]
  return {
    "model": model,
    "prompt": prompt,
    "new": new,
    "group": group,
    "repeats": len(shared.wall),
    "repeated_rows_at_once": at_once,
    "shared_s": medians[0],
    "repeated_s": medians[1],
    "speedup": medians[1] / medians[0],
    "speedup_best": min(repeated.wall) / min(shared.wall),
    "speedup_cpu": statistics.median(repeated.cpu) / statistics.median(shared.cpu),
    "formula": formula_ratio(s, prompt, new, group),
    "compiled_one_layer": counted[1] / counted[0],
    "formula_one_layer": formula_ratio(one_layer, prompt, new, group),
    "explained_one_layer": executed[1]["flops"] / executed[0]["flops"],
    "compiled_flops": counted,
    "explained": executed,
    **gaps,
    "neighbours": max(t.neighbours() for t in timers),
    "load": os.getloadavg()[0],
  }


def plot(rows: list[dict], path: Path) -> None:
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axis = plt.subplots(figsize=(4.5, 4), dpi=110)
  top = 1.1 * max(max(r["speedup"], r["formula"]) for r in rows)
  axis.plot([1, top], [1, top], color="0.7", linewidth=1)
  kinds = sorted({(r["model"], r["group"]) for r in rows})
  for kind, mark in zip(kinds, "o^sDv*", strict=False):
    mine = [r for r in rows if (r["model"], r["group"]) == kind]
    label = f"G = {kind[1]}" + ("" if kind[0] == "small" else ", SmolLM2's shape")
    axis.plot([r["formula"] for r in mine], [r["speedup"] for r in mine], mark, label=label)
  axis.set_xlabel("arithmetic, repeated / shared")
  axis.set_ylabel("time of a gradient step, repeated / shared")
  axis.legend(frameon=False)
  figure.tight_layout()
  figure.savefig(path)
  plt.close(figure)


def main(argv: list[str]) -> list[dict]:
  a = arguments(argv)
  before, rows = machine(), []
  columns = (
    "model       P   T   G  shared s  repeated s  speed-up  by CPU s  formula  compiled/formula"
  )
  print(columns + "  gap", flush=True)
  for cell in a.cells:
    r = measure(a, *cell)
    rows.append(r)
    print(
      f"{r['model']:8s} {r['prompt']:4d} {r['new']:3d} {r['group']:3d} {r['shared_s']:9.3f} "
      f"{r['repeated_s']:11.3f} {r['speedup']:9.2f} {r['speedup_cpu']:9.2f} {r['formula']:8.2f} "
      f"{r['compiled_one_layer'] / r['formula_one_layer']:17.3f}  {r['gradient_gap']:.0e}",
      flush=True,
    )
  a.out.parent.mkdir(parents=True, exist_ok=True)
  settings = {"hidden": a.hidden, "layers": a.layers, "vocab": a.vocab, "repeats": a.repeats}
  report = {"machine": before, **settings, "jax": jax.__version__, "cores": os.cpu_count()}
  last = final(rows)
  a.out.write_text(json.dumps(report | {"final": last, "rows": rows}, indent=1) + "\n")
  plot(rows, a.out.with_suffix(".png"))
  if not last["quiet"]:
    print("warning: other processes ran beside these: the times are not to be published")
  print("final: " + json.dumps(last))
  return rows


def final(rows: list[dict]) -> dict:
  worst = min(rows, key=lambda r: r["speedup"] / r["formula"])
  off = lambda key: round(max(abs(r["compiled_one_layer"] / r[key] - 1) for r in rows), 3)
  return {
    "speedup_max": round(max(r["speedup"] for r in rows), 2),
    "of_formula_least": round(worst["speedup"] / worst["formula"], 2),
    "of_formula_least_at": [worst[k] for k in ("model", "prompt", "new", "group")],
    "gradient_gap_max": max(r["gradient_gap"] for r in rows),
    "compiled_off_formula_max": off("formula_one_layer"),
    "compiled_off_explained_max": off("explained_one_layer"),
    "quiet": max(r["neighbours"] for r in rows) <= table.QUIET,
  }
