"""The loop for real language models: host rewards, a compiled sampler and a compiled update.

Read `run` from top to bottom: it is the life of a run. What a step does to the policy is in the
method's file; how arrays are laid out is in types.py.
"""

import time
from pathlib import Path

import numpy as np

from grpo_jax import sharding
from grpo_jax.data.stream import PromptStream
from grpo_jax.rollout import plans
from grpo_jax.rollout.collect import Ask
from grpo_jax.rollout.evaluate import evaluate
from grpo_jax.run import export
from grpo_jax.run.checkpoint import Checkpoints
from grpo_jax.run.compiles import count_compiles
from grpo_jax.run.journal import Journal, finished
from grpo_jax.train import setup


def run(c, workdir: Path, say=print) -> dict:
  """Trains `c` in `workdir`, or goes on where the folder's last whole checkpoint stands."""
  start = time.monotonic()
  compiles = count_compiles()

  # ---- setup: config, mesh, model, data, rewards, compiled functions ----------------------------
  setup.check_folder(c, workdir)
  if (final := finished(c, workdir)) is not None:
    return final
  parts = setup.prepare(c, say)
  say(setup.outlook(c, parts))
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
  show, gold = setup.make_show(c, parts), setup.make_gold(c, parts)
  plan, collect = parts.method.plan, plans.of(parts.method.plan).collect

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
    args = parts.sampling, state.params, parts.pool, draw, c.batch.prompts, step, show
    got = collect(plan, Ask(*args))

    # score: what the method reads of the old and the reference policy
    scored = time.monotonic()
    rollouts, batch = setup.place(parts, got)
    if parts.supply is not None:
      known = None if gold is None else gold(got.problems)
      batch = parts.supply(state.params, parts.reference, known, batch)

    # credit, update, remember
    updated = time.monotonic()
    key = setup.step_key(c, parts, step)
    credit = parts.credit(state.method_state, state.step, rollouts, batch)
    state, metrics, per_token = parts.update(state, rollouts, batch, credit, key)
    state, metrics = setup.after_update(parts, state, rollouts, batch, metrics)
    metrics = sharding.to_host(metrics)

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
