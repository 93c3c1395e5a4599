"""Speed of the GPU kernels against what the device can do: `python -m experiments.bench.gpu_check`.

Writes benchmarks/results/gpu_<device>.json. Rates are shares of what the same run measures: a
large matrix product, a copy, and cuDNN's flash attention on prompts repeated for every completion.
`--tiny` only shows that the script runs, on any machine.
"""

import argparse
import dataclasses
import functools
import json
import re
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from grpo_jax.errors import UserError
from pallas_kernels import prefix_attention as attention
from pallas_kernels import token_logprob
from pallas_kernels.prefix_attention.cases import CASES, DECODE_CASES, Case, DecodeCase

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
DTYPE = jnp.bfloat16
# The least, or for `token_logprob` the most, that the kernels are to reach.
TARGETS = {"of_formula": 0.8, "times_the_matmul": 1.3, "of_bandwidth": 0.7}


def arguments(argv=None):
  parser = argparse.ArgumentParser(prog="gpu_check", allow_abbrev=False)
  parser.add_argument("--implementation", default="gpu")
  parser.add_argument("--baseline", default="cudnn", help="cudnn, or xla")
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--calls", type=int, default=10, help="in one measurement")
  parser.add_argument("--repeats", type=int, default=7, help="measurements, of which the median")
  parser.add_argument("--out", type=Path)
  a = parser.parse_args(argv)
  if jax.default_backend() != "gpu" and not (a.tiny and a.out):
    raise UserError("no GPU: give --tiny and --out=FILE to see whether the script runs")
  return a


def seconds(a, call, *args) -> float:
  """Of one call, by the median of several runs of calls that do not wait for each other."""
  call = call if hasattr(call, "as_text") else jax.jit(call)
  jax.block_until_ready(call(*args))
  found = []
  for _ in range(a.repeats):
    start = time.perf_counter()
    out = None
    for _ in range(a.calls):
      out = call(*args)
    jax.block_until_ready(out)
    found.append((time.perf_counter() - start) / a.calls)
  return statistics.median(found)


def normal(seed: int, shape) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape, DTYPE)


def device_rates(a) -> dict[str, float]:
  """Matrix product in FLOP/s, copy in bytes/s read and written."""
  n = 64 if a.tiny else 8192
  left, right = normal(0, (n, n)), normal(1, (n, n))
  size = 2**12 if a.tiny else 2**30
  product = seconds(a, lambda x, y: x @ y, left, right)
  copy = seconds(a, lambda x: x + 1, jnp.zeros(size, jnp.float32))
  return {"matmul_flops": 2 * n**3 / product, "copy_bytes_s": 8 * size / copy}


def with_gradient(call):
  """The backward pass from saved residuals cannot be called alone: forward and backward."""

  def both(q, k, v, cotangent):
    out, back = jax.vjp(call, q, k, v)
    return out, *back(cotangent)

  return both


def training(a, case: Case, rates) -> dict:
  """Shared prompts against prompts repeated for every completion, at the same model."""
  length, total = case.prompt, case.prompt + case.completion
  q, k, v = (normal(i, case.shapes[name]) for i, name in enumerate("qkv"))
  prefix_length = jnp.full((case.rows,), case.prompt, jnp.int32)
  shared = functools.partial(
    attention.prefix_attention,
    prefix_length=prefix_length,
    implementation=a.implementation,
    **case.options,
  )
  flops = 4 * case.pairs() * case.head_dim
  forward = seconds(a, shared, q, k, v)
  both = seconds(a, with_gradient(shared), q, k, v, q)
  backward = max(both - forward, 1e-9)

  many = case.rows * case.group
  repeated = functools.partial(
    jax.nn.dot_product_attention, is_causal=True, implementation=a.baseline
  )
  q, k, v = (
    normal(i, (many, total, heads, case.head_dim))
    for i, heads in enumerate((case.heads, case.kv_heads, case.kv_heads))
  )
  base_forward = seconds(a, repeated, q, k, v)
  base_both = seconds(a, with_gradient(repeated), q, k, v, q)
  base_pairs = many * case.heads * total * (total + 1) // 2
  formula = base_pairs / case.pairs()
  return {
    "case": dataclasses.asdict(case),
    "forward_s": forward,
    "forward_and_backward_s": both,
    "forward_of_matmul": flops / forward / rates["matmul_flops"],
    # Five products to the forward's two; what is computed twice counts once.
    "backward_of_matmul": 2.5 * flops / backward / rates["matmul_flops"],
    "baseline": a.baseline,
    "baseline_forward_s": base_forward,
    "baseline_forward_and_backward_s": base_both,
    "baseline_forward_of_matmul": 4 * base_pairs * case.head_dim / base_forward
    / rates["matmul_flops"],
    "speed_up_of_formula": formula,
    "forward_of_formula": base_forward / forward / formula,
    "of_formula": base_both / both / formula,
    "prompt_share": length / total,
  }  # fmt: skip


def logprob(a, vocab: int) -> dict:
  """Log-probabilities of tokens against the product with the output matrix alone."""
  tokens, width = (32, 64) if a.tiny else (8192, 4096)
  hidden, head = normal(0, (tokens, width)), normal(1, (vocab, width))
  target = jax.random.randint(jax.random.key(2), (tokens,), 0, vocab)
  call = functools.partial(token_logprob.token_logprob, implementation=a.implementation)
  compiled = jax.jit(call).lower(hidden, head, target).compile()
  matmul = seconds(a, lambda h, w: h @ w.T, hidden, head)
  forward = seconds(a, compiled, hidden, head, target)
  loss = lambda h, w, t: jnp.sum(call(h, w, t).logp)
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head, target).compile()
  memory = (compiled.memory_analysis(), gradient.memory_analysis())
  return {
    "tokens": tokens,
    "width": width,
    "vocab": vocab,
    "matmul_s": matmul,
    "forward_s": forward,
    "times_the_matmul": forward / matmul,
    "gradient_s": seconds(a, gradient, hidden, head, target),
    "temp_bytes": [m.temp_size_in_bytes if m else None for m in memory],
  }


def decoding(a, case: DecodeCase, rates) -> dict:
  """A decode step of full caches against the time to read them once at the speed of a copy."""
  kinds = {"prefix_length": jnp.int32, "visible": jnp.bool_}
  arrays = {
    name: jnp.full(shape, case.prompt, jnp.int32)
    if name == "prefix_length"
    else jnp.ones(shape, bool)
    if name in kinds
    else normal(i, shape)
    for i, (name, shape) in enumerate(case.shapes.items())
  }
  call = lambda arrays: attention.decode_attention(
    **arrays, implementation=a.implementation, **case.options
  )
  taken = seconds(a, call, arrays)
  read = sum(x.size * x.dtype.itemsize for x in arrays.values())
  return {
    "case": dataclasses.asdict(case),
    "step_s": taken,
    "bytes": read,
    "bytes_s": read / taken,
    "of_bandwidth": read / taken / rates["copy_bytes_s"],
  }


def chosen(a) -> tuple[list[Case], list[DecodeCase], list[int]]:
  cases = [c for c in CASES if c.name == "llama-3.1-8b"]
  decodes = [c for c in DECODE_CASES if c.name in ("llama-3.1-8b", "qwen3-0.6b", "smollm2-135m")]
  if a.tiny:
    return [c.small() for c in cases], [c.small() for c in decodes[:1]], [64, 128]
  shorter = dataclasses.replace(cases[0], name="llama-3.1-8b-short", rows=4, prompt=1024)
  more = dataclasses.replace(decodes[1], name="llama-3.1-8b-many", rows=16)
  return [*cases, shorter], [*decodes, more], [32768, 131072]


def main(argv: list[str] | None = None) -> dict:
  a = arguments(argv)
  kind = jax.devices()[0].device_kind
  cases, decodes, vocabs = chosen(a)
  rates = device_rates(a)
  result = {
    "device": kind,
    "jax": jax.__version__,
    "dtype": "bfloat16",
    "implementation": a.implementation,
    "tiny": a.tiny,
    "targets": TARGETS,
    "rates": rates,
    "training": [training(a, case, rates) for case in cases],
    "token_logprob": [logprob(a, vocab) for vocab in vocabs],
    "decode": [decoding(a, case, rates) for case in decodes],
  }
  name = re.sub(r"\W+", "_", kind.lower()).strip("_")
  out = a.out or RESULTS / f"gpu_{name}.json"
  out.write_text(json.dumps(result, indent=1) + "\n")
  print(json.dumps(result, indent=1))
  return result


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"error: {error}")
