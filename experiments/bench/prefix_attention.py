"""A GRPO gradient step with the prompt computed once a group, against once a completion (card 59).

Both forms go through the same forward pass, loss and gradient: the repeated one gets every prompt G
times, in groups of one. What is checked: equal losses and gradients; how close the wall-clock gain
comes to the ratio of the arithmetic, and that ratio in the compiled programs.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import work
from experiments.bench.ours import model_config
from grpo_jax import methods
from grpo_jax.errors import UserError
from grpo_jax.models import decoder, policy
from grpo_jax.types import Batch, Rollouts

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def arguments(argv):
  parser = argparse.ArgumentParser(
    prog="python -m experiments.bench prefix_attention", allow_abbrev=False
  )
  parser.add_argument("--prompt", default="256,1024")
  parser.add_argument("--new", default="32,128")
  parser.add_argument("--group", default="4,8,16")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--hidden", type=int, default=256)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--vocab", type=int, default=1024)
  parser.add_argument("--out", type=Path, default=RESULTS / "prefix_attention_cpu.json")
  a = parser.parse_args(argv)
  for name in ("prompt", "new", "group"):
    try:
      setattr(a, name, [int(n) for n in getattr(a, name).split(",")])
    except ValueError as error:
      raise UserError(f"--{name}: give numbers with commas between them") from error
  return a


def sizes(a, prompt: int, new: int, layers: int) -> SimpleNamespace:
  return SimpleNamespace(
    prompt=prompt,
    new=new,
    hidden=a.hidden,
    heads=max(a.hidden // 32, 1),
    ffn=4 * a.hidden,
    vocab=a.vocab,
    layers=layers,
  )


def batches(a, prompt: int, new: int, group: int) -> tuple[Rollouts, Batch, Batch]:
  """One prompt and its completions: shared, and with the prompt repeated."""
  rng = np.random.default_rng(0)
  ids = rng.integers(0, a.vocab, (1, prompt)).astype(np.int32)
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
    "tokens": rng.integers(0, a.vocab, (group, new)).astype(np.int32),
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


def gradient(config, chunk: int = 256):
  """(params, rollouts, batch) -> (loss, gradients), compiled."""
  method, forward = methods.get("grpo"), policy.make_forward(config, chunk=chunk)

  def loss(params, rollouts, batch):
    credit = method.credit((), rollouts, batch)
    return method.loss(forward(params, batch), batch, credit)[0]

  return jax.jit(jax.value_and_grad(loss))


def distance(left, right) -> float:
  """|left - right| / |left| over all parameters together."""
  square = lambda tree: sum(float(jnp.sum(x * x)) for x in jax.tree.leaves(tree))
  return (square(jax.tree.map(jnp.subtract, left, right)) / square(left)) ** 0.5


def compiled_ratio(a, prompt, new, rollouts, shared, repeated) -> float:
  """Repeated / shared of the compilers' own count of FLOPs, of one layer and unchunked logits:
  the count takes the body of a loop once, however often it runs."""
  config = model_config(sizes(a, prompt, new, layers=1))
  params = jax.eval_shape(lambda key: decoder.init(config, key), jax.random.key(0))
  step = gradient(config, chunk=0)
  flops = [
    step.lower(params, rollouts, batch).compile().cost_analysis()["flops"]  # pyright: ignore[reportOptionalSubscript]
    for batch in (shared, repeated)
  ]
  return flops[1] / flops[0]


def formula_ratio(a, prompt: int, new: int, group: int, layers: int) -> float:
  shape = work.llama(sizes(a, prompt, new, layers))
  size = {"prompts": 1, "group": group, "prompt": prompt, "new": new}
  return work.repeated(shape, **size) / work.forward(shape, **size)


def measure(a, prompt: int, new: int, group: int) -> dict:
  config = model_config(sizes(a, prompt, new, a.layers))
  params = decoder.init(config, jax.random.key(0))
  rollouts, *forms = batches(a, prompt, new, group)
  step = gradient(config)
  (loss, grads), (loss_repeated, grads_repeated) = (step(params, rollouts, b) for b in forms)
  wall: tuple[list[float], list[float]] = ([], [])
  cpu: tuple[list[float], list[float]] = ([], [])
  for _ in range(a.repeats):
    for i, batch in enumerate(forms):
      start = time.perf_counter(), time.process_time()
      jax.block_until_ready(step(params, rollouts, batch))
      wall[i].append(time.perf_counter() - start[0])
      cpu[i].append(time.process_time() - start[1])
  medians = [statistics.median(s) for s in wall]
  return {
    "prompt": prompt,
    "new": new,
    "group": group,
    "shared_s": medians[0],
    "repeated_s": medians[1],
    "speedup": medians[1] / medians[0],
    "speedup_best": min(wall[1]) / min(wall[0]),
    "speedup_cpu": statistics.median(cpu[1]) / statistics.median(cpu[0]),
    "formula": formula_ratio(a, prompt, new, group, a.layers),
    "compiled_one_layer": compiled_ratio(a, prompt, new, rollouts, *forms),
    "formula_one_layer": formula_ratio(a, prompt, new, group, 1),
    "loss_gap": abs(float(loss - loss_repeated)),
    "gradient_gap": distance(grads, grads_repeated),
    "load": os.getloadavg()[0],
  }


def plot(rows: list[dict], path: Path) -> None:
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axis = plt.subplots(figsize=(4.5, 4), dpi=110)
  top = 1.1 * max(max(r["speedup"], r["formula"]) for r in rows)
  axis.plot([1, top], [1, top], color="0.7", linewidth=1)
  for group, mark in zip(sorted({r["group"] for r in rows}), "o^sDv*", strict=False):
    mine = [r for r in rows if r["group"] == group]
    axis.plot(
      [r["formula"] for r in mine], [r["speedup"] for r in mine], mark, label=f"G = {group}"
    )
  axis.set_xlabel("arithmetic, repeated / shared")
  axis.set_ylabel("time of a gradient step, repeated / shared")
  axis.legend(frameon=False)
  figure.tight_layout()
  figure.savefig(path)
  plt.close(figure)


def main(argv: list[str]) -> list[dict]:
  a = arguments(argv)
  rows = []
  columns = "   P   T   G  shared s  repeated s  speed-up  by CPU s  formula  compiled/formula  gap"
  print(columns, flush=True)
  for prompt in a.prompt:
    for new in a.new:
      for group in a.group:
        r = measure(a, prompt, new, group)
        rows.append(r)
        print(
          f"{prompt:4d} {new:3d} {group:3d} {r['shared_s']:9.3f} {r['repeated_s']:11.3f} "
          f"{r['speedup']:9.2f} {r['speedup_cpu']:9.2f} {r['formula']:8.2f} "
          f"{r['compiled_one_layer'] / r['formula_one_layer']:17.3f}  {r['gradient_gap']:.0e}",
          flush=True,
        )
  a.out.parent.mkdir(parents=True, exist_ok=True)
  settings = {"hidden": a.hidden, "layers": a.layers, "vocab": a.vocab, "repeats": a.repeats}
  report = settings | {"jax": jax.__version__, "cores": os.cpu_count(), "rows": rows}
  a.out.write_text(json.dumps(report, indent=1) + "\n")
  plot(rows, a.out.with_suffix(".png"))
  worst = min(rows, key=lambda r: r["speedup"] / r["formula"])
  final = {
    "speedup_max": round(max(r["speedup"] for r in rows), 2),
    "of_formula_least": round(worst["speedup"] / worst["formula"], 2),
    "gradient_gap_max": max(r["gradient_gap"] for r in rows),
  }
  print("final: " + json.dumps(final))
  return rows
