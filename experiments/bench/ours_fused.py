"""Our fused loop on the small model, timed in a process of its own: whole runs, one program.

`python -m experiments.bench.ours_fused --prompts 32 --group 8 --steps 100`: a run is `--steps`
updates on envs/sequence (seven letters and ">" to be reversed, eight tokens to answer) and the two
evaluations on held-out problems that a run has; `--runs` of them are timed, each with another seed,
after the program was compiled and run once. The reward is the peer's: the mean id over the
vocabulary size (with the world's own nearly every group of a random policy would have no gradient);
the world's verdict is computed beside it. Learning rate as for the peer, so that completions stay
what a random policy writes.
"""

import dataclasses
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from experiments.bench import record
from experiments.bench.ours import model_config
from grpo_jax import methods
from grpo_jax.envs.worlds import sequence
from grpo_jax.errors import UserError
from grpo_jax.models import decoder
from grpo_jax.train.programs import fused

LR = 1e-6


def world(a):
  """envs/sequence at these sizes, paid by mean id. UserError unless both are 2 to 33 tokens."""
  if a.prompt != a.new or not 2 <= a.new <= 33:
    raise UserError(f"--prompt={a.prompt} --new={a.new}: the world has as many of both, 2 to 33")
  found = sequence.make(items=a.prompt - 1, kinds=min(52, a.vocab - 3))

  def score(problem, state, tokens, length):
    inside = jnp.arange(a.new) < length
    mean = jnp.sum(jnp.where(inside, tokens, 0)) / jnp.maximum(length, 1)
    return found.score(problem, state, tokens, length).replace(reward=mean / a.vocab)

  return dataclasses.replace(found, score=score)


def timed(run, seed: int) -> tuple[float, float, float, fused.Curves]:
  """(wall seconds, processor seconds, those of all processes, curves)."""
  start = time.perf_counter(), time.process_time(), record.busy_seconds()
  _, curves = jax.block_until_ready(run(jnp.int32(seed)))
  wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
  return wall, cpu, record.busy_seconds() - start[2], curves


def main(argv: list[str] | None = None) -> dict:
  a = record.arguments(argv, ("runs", 3))
  config = model_config(a)
  plan = fused.Sizes(
    updates=a.steps, eval_every=a.steps, prompts=a.prompts, group=a.group, lr=LR, heldout=256
  )
  start = time.perf_counter()
  begun = time.process_time()
  run = jax.jit(fused.make_run(world(a), methods.get("grpo"), plan, config))
  compiled = run.lower(jnp.int32(0)).compile()
  compile_s, compile_cpu_s = time.perf_counter() - start, time.process_time() - begun
  timed(compiled, 0)
  first_s = time.perf_counter() - start
  wall, cpu, busy, curves = zip(*(timed(compiled, 1 + i) for i in range(a.runs)), strict=True)
  steps = [w / a.steps for w in wall]
  step = statistics.median(steps)
  assert all(jnp.all(jnp.isfinite(c.train["loss"])) for c in curves)
  return {
    "framework": "grpo_jax",
    "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
    "params": decoder.num_params(
      jax.eval_shape(lambda key: decoder.init(config, key), jax.random.key(0))
    ),
    "prompt": a.prompt,
    "new": a.new,
    "rows": a.prompts * a.group,
    "updates": a.steps,
    "step_s": round(step, 6),
    "step_min_s": round(min(steps), 6),
    "step_all_s": [round(s, 6) for s in steps],
    "cpu_s": round(statistics.median(cpu) / a.steps, 6),
    "compile_s": round(compile_s, 2),
    "compile_cpu_s": round(compile_cpu_s, 2),
    "first_step_s": round(first_s - (a.steps - 1) * step, 2),
    "mean_length": round(float(curves[-1].held.length[-1]), 2),
    "peak_mb": round(record.peak_mb(), 1),
    "neighbours": round(max(sum(busy) - sum(cpu), 0) / (sum(wall) * (os.cpu_count() or 1)), 3),
    "load": round(os.getloadavg()[0], 2),
    "cores": os.cpu_count(),
  }


if __name__ == "__main__":
  record.emit(main())
