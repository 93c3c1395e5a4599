"""The loop for real language models: host rewards, a compiled sampler and a compiled update.

Read `run` from top to bottom: it is the life of a run. What a step does to the policy is in the
method's file; how arrays are laid out is in types.py.
"""

import time
from pathlib import Path

import jax
import numpy as np

from grpo_jax import sharding
from grpo_jax.data.stream import PromptStream
from grpo_jax.rollout.collect import collect
from grpo_jax.rollout.evaluate import evaluate
from grpo_jax.run import export
from grpo_jax.run.checkpoint import Checkpoints
from grpo_jax.run.compiles import count_compiles
from grpo_jax.run.journal import Journal, finished
from grpo_jax.train import setup
from grpo_jax.train.update import wants_old, with_old
from grpo_jax.types import Flat


def run(c, workdir: Path, say=print) -> dict:
  """Trains `c` in `workdir`, or goes on where the folder's last whole checkpoint stands."""
  start = time.monotonic()
  compiles = count_compiles()

  # ---- setup: config, mesh, model, data, rewards, compiled functions ----------------------------
  setup.check_folder(c, workdir)
  if (final := finished(c, workdir)) is not None:
    return final
  parts = setup.prepare(c, say)
  say(setup.plan(c, parts))
  setup.save_config(c, workdir)

  # ---- state: params, optimizer and method state; position in the data --------------------------
  stream = PromptStream(parts.data.train, seed=c.seed, order=parts.data.order)
  checkpoints = Checkpoints(workdir, c.checkpoint.keep, say)
  state, first = parts.state, 0
  if (found := checkpoints.restore(state)) is not None:
    first, state, host = found
    setup.check_steps(c, first)
    stream.restore(host["stream"])
    checkpoints.discard_after(first)
    say(f"resumed after step {first}")
  export.check(c, first)
  journal = Journal(c, workdir, first, say)
  heldout = parts.data.heldout[: c.eval.problems]
  show = setup.make_show(c, parts)

  def held_out(step: int):
    e, choice = c.eval, parts.eval_choice
    return journal.evaluated(
      step,
      lambda: evaluate(
        parts.sampling, state.params, parts.pool, heldout, e.batch, e.samples, choice
      ),
    )

  # ---- loop -------------------------------------------------------------------------------------
  before = held_out(0)
  for step in range(first + 1, c.steps + 1):
    clock, compiled = time.monotonic(), compiles()

    # sample, verify: completions from the policy, rewards from processes of their own
    weights = None if parts.weigh is None else np.asarray(parts.weigh(state.method_state))
    draw = lambda n, weights=weights: stream.next(n, weights)
    plan = parts.method.plan if isinstance(parts.method.plan, Flat) else Flat()
    count, pool = c.batch.prompts, parts.pool
    got = collect(parts.sampling, state.params, pool, draw, count, step, plan, show)

    # score: what the method needs to know of the old and the reference policy
    scored = time.monotonic()
    rollouts = sharding.put(got.rollouts, sharding.replicated(parts.mesh))
    batch = sharding.put(got.batch, sharding.rows(parts.mesh))
    if wants_old(parts.method, parts.cut):
      batch = with_old(batch, parts.score(state.params, batch))
    if parts.reference is not None:
      batch = batch.replace(logp_ref=parts.score(parts.reference, batch).logp)

    # credit, update, remember: one compiled program
    updated = time.monotonic()
    key = jax.random.fold_in(jax.random.key(c.seed + 1), step)
    key = sharding.put(key, sharding.replicated(parts.mesh))
    state, metrics, per_token = parts.update(state, rollouts, batch, key)
    metrics = sharding.fetch(metrics)

    # log, evaluate, save
    done = time.monotonic()
    seconds = got.seconds | {"score": updated - scored, "update": done - updated}
    journal.step(step, got, metrics, seconds | {"total": done - clock}, compiles())
    if step > first + 1 and compiles() > compiled:
      journal.say(f"step {step}: {compiles() - compiled} programs compiled for a new shape")
    journal.rollouts(step, got, per_token, parts)
    if c.eval.every and step % c.eval.every == 0 and step < c.steps:
      held_out(step)
    if step % c.checkpoint.every == 0 or step == c.steps:
      checkpoints.save(step, state, {"stream": stream.state()})

  # ---- end --------------------------------------------------------------------------------------
  after = held_out(c.steps)
  checkpoints.close()
  parts.pool.close()
  export.export(c, parts, state, journal.say)
  return journal.finish(before, after, time.monotonic() - start)
