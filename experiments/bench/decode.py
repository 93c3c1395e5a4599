"""Decode speed of SmolLM2-135M in float32, ours: `python -m experiments.bench.decode FOLDER`.

`--export` first writes FOLDER: the model as safetensors, for transformers to load, and the prompts
as token ids. The peer is experiments/bench/peers/transformers_decode.py, with the same arguments.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from experiments.bench import record


def arguments(argv=None):
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("folder", type=Path)
  parser.add_argument("--export", action="store_true")
  for name, default in (
    ("prompts", 4),
    ("group", 16),
    ("prompt", 90),
    ("new", 32),
    ("repeats", 2),
    ("greedy", 8),  # tokens of the greedy continuation that both must agree on
    ("threads", 0),
  ):
    parser.add_argument(f"--{name}", type=int, default=default)
  return parser.parse_args(argv)


def prompt_text(index: int) -> str:
  """Solved sums, more than enough tokens of them."""
  terms = [((7 * i + 3 * index) % 10, (5 * i + index) % 10) for i in range(64)]
  return "".join(f"Question: {x} + {y}\nAnswer: {x + y}\n\n" for x, y in terms)


def export(a) -> dict:
  from grpo_jax.models import loading, safetensors_file

  config, params, tokenizer = loading.load("smollm2")
  safetensors_file.save(a.folder, config, params)
  prompts = [tokenizer.encode(prompt_text(i))[: a.prompt] for i in range(a.prompts)]
  assert all(len(p) == a.prompt for p in prompts)
  (a.folder / "prompts.json").write_text(json.dumps(prompts))
  return {"exported": len(prompts)}


def summarize(a, whole: list[float], first: list[float], **fields) -> dict:
  """`whole`: seconds of calls for `new` tokens; `first`: of calls for one token."""
  rows = a.prompts * a.group
  seconds, prefill = statistics.median(whole), statistics.median(first)
  return fields | {
    "rows": rows,
    "prompt": a.prompt,
    "new": a.new,
    "whole_s": round(seconds, 3),
    "whole_all_s": [round(t, 3) for t in whole],
    "one_token_s": round(prefill, 3),
    "one_token_all_s": [round(t, 3) for t in first],
    "tokens_per_s": round(rows * a.new / seconds, 1),
    "tokens_per_s_best": round(rows * a.new / min(whole), 1),
    # With the prompt's pass taken off: what a decode step costs.
    "decode_tokens_per_s": round(rows * (a.new - 1) / max(seconds - prefill, 1e-9), 1),
    "peak_mb": round(record.peak_mb(), 1),
  }


def timed(call) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def ours(a) -> dict:
  import jax
  import numpy as np

  from grpo_jax.models import safetensors_file
  from grpo_jax.rollout import sampler
  from grpo_jax.rollout.choose import Choice

  config, params = safetensors_file.load(a.folder)
  params = jax.device_put(params)
  prompt = np.asarray(json.loads((a.folder / "prompts.json").read_text()), np.int32)
  length = np.full(len(prompt), prompt.shape[1], np.int32)
  keys = jax.random.split(jax.random.key(0), len(prompt))

  def generate(new: int, group: int = a.group, temperature: float = 1.0):
    choice = Choice(temperature)
    out = sampler.sample(
      config, params, prompt, length, keys, group=group, budget=new, stop_ids=(), choice=choice
    )
    return jax.device_get(out)

  compile_s = timed(lambda: generate(a.new))
  generate(1)
  pairs = [(timed(lambda: generate(a.new)), timed(lambda: generate(1))) for _ in range(a.repeats)]
  assert int(generate(a.new).length.min()) == a.new
  greedy = generate(a.greedy, 1, 0.0).tokens[:, 0]
  return summarize(
    a,
    *map(list, zip(*pairs, strict=True)),
    framework="grpo_jax",
    versions={"jax": jax.__version__},
    first_call_s=round(compile_s, 2),
    greedy=greedy.tolist(),
  )


def main(argv: list[str] | None = None) -> dict:
  a = arguments(argv)
  return export(a) if a.export else ours(a)


if __name__ == "__main__":
  record.emit(main(sys.argv[1:]))
