"""The bound: float32 matmul speed of jax on this machine, GFLOP/s, at the best of several runs.

`large` is 2048 x 2048 x 2048; `model` is the MLP of the step's model at the positions of an update.
"""

import sys
import time

import jax

from experiments.bench import record, work


def gflops(rows: int, inner: int, columns: int, repeats: int) -> float:
  left = jax.random.normal(jax.random.key(0), (rows, inner))
  right = jax.random.normal(jax.random.key(1), (inner, columns))
  product = jax.jit(lambda a, b: a @ b)
  product(left, right).block_until_ready()
  best = float("inf")
  for _ in range(repeats):
    start = time.perf_counter()
    product(left, right).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2e-9 * rows * inner * columns / best


def main(argv: list[str] | None = None) -> dict:
  a = record.arguments(argv)
  rows = work.positions(a.prompts, a.group, a.prompt, a.new)
  return {
    "large_gflops": round(gflops(2048, 2048, 2048, 8), 1),
    "model_gflops": round(gflops(rows, a.hidden, a.ffn, 100), 1),
  }


if __name__ == "__main__":
  record.emit(main(sys.argv[1:]))
