"""The loop without sampling: demonstrations (sft) and preference pairs (dpo), `Fixed` plans.

Read `run` from top to bottom: it is the life of a run. Where completions come from is in
rollout/fixed.py; what a step does to the policy is in the method's file.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from grpo_jax import sharding
from grpo_jax.data.prompts import PromptSpec
from grpo_jax.data.stream import PromptStream
from grpo_jax.errors import UserError
from grpo_jax.rollout import fixed
from grpo_jax.rollout.evaluate import Evaluation, evaluate
from grpo_jax.run import export
from grpo_jax.run.checkpoint import Checkpoints
from grpo_jax.run.compiles import count_compiles
from grpo_jax.run.journal import Journal, finished
from grpo_jax.train import setup
from grpo_jax.train.update import credit_of


def run(c, workdir: Path, say=print) -> dict:
  """Trains `c` in `workdir`, or goes on where the folder's last whole checkpoint stands."""
  start = time.monotonic()
  compiles = count_compiles()

  # ---- setup: config, mesh, model, data, compiled functions -------------------------------------
  c = check(c)
  setup.check_folder(c, workdir)
  if (final := finished(c, workdir)) is not None:
    return final
  parts = setup.prepare(c, say)
  say(setup.outlook(c, parts))
  train, heldout = (
    fixed.examples(parts.sampling, problems, PromptSpec.of(c.data.get("prompt")), c.batch.group)
    for problems in (parts.data.train, parts.data.heldout[: c.eval.problems])
  )
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
  measure = make_measure(c, parts, list(heldout.values()))
  held_out = lambda step: journal.evaluated(step, lambda: measure(state))

  # ---- loop -------------------------------------------------------------------------------------
  before = held_out(0)
  for step in range(first + 1, c.steps + 1):
    clock, compiled = time.monotonic(), compiles()

    # the next completions of the data
    weights = None if parts.weigh is None else np.asarray(parts.weigh(state.method_state))
    drawn = stream.next(c.batch.prompts, weights)
    got = fixed.assemble(parts.sampling, [train[p.id] for p in drawn])

    # score: what the method reads of the old and the reference policy
    rollouts, batch = setup.place(parts, got)
    if parts.supply is not None:
      batch = parts.supply(state.params, parts.reference, None, batch)

    # credit, update, remember
    updated = time.monotonic()
    key = setup.step_key(c, parts, step)
    credit = parts.credit(state.method_state, state.step, rollouts, batch)
    state, metrics, per_token = parts.update(state, rollouts, batch, credit, key)
    state, metrics = setup.after_update(parts, state, rollouts, batch, metrics)
    metrics = sharding.to_host(metrics)

    # log, evaluate, save
    done = time.monotonic()
    seconds = {"score": updated - clock, "update": done - updated, "total": done - clock}
    journal.step(step, got, metrics, seconds, compiles())
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


def check(c):
  """Refuses a wrong number of completions; returns the config with the data's `needs` filled in."""
  method = setup.make_method(c)
  wanted = method.plan.rollouts(c.batch.group)
  if c.batch.group != wanted:
    raise UserError(
      f"batch.group={c.batch.group}: {c.method} learns from {wanted} given completion(s) a prompt; "
      f"use batch.group={wanted}"
    )
  if c.data.get("source") != "reasoning_gym" and "needs" not in c.data:
    c = c.copy_and_resolve_references()
    with c.unlocked():
      c.data.needs = ("completion",) if wanted == 1 else ("chosen", "rejected")
  return c


def make_measure(c, parts, examples):
  """state -> Evaluation: the method's own loss and metrics on held-out completions, and greedy
  accuracy on those problems that can be judged: with an answer, or with a task's scorer.

  Losses are means over batches, each counting as its examples; the last one is filled with dead
  ones.
  """
  size, e = c.batch.prompts, c.eval
  judged = [x.problem for x in examples if x.problem.answer is not None or "task" in x.problem.meta]

  @jax.jit
  def loss_of(method_state, step, rollouts, batch, fwd):
    credit = credit_of(parts.method, method_state, step, rollouts, batch)
    loss, metrics = parts.method.loss(fwd, batch, credit)
    return metrics | {"loss": loss}

  def losses(state) -> dict[str, float]:
    total: dict[str, float] = {}
    for i in range(0, len(examples), size):
      chunk = examples[i : i + size]
      full = chunk + [chunk[0]] * (size - len(chunk))
      rollouts, batch = setup.place(parts, fixed.assemble(parts.sampling, full, len(chunk)))
      if parts.supply is not None:
        batch = parts.supply(state.params, parts.reference, None, batch)
      fwd = parts.score(state.params, batch)
      found = loss_of(state.method_state, state.step, rollouts, batch, fwd)
      for k, v in sharding.to_host(found).items():
        total[k] = total.get(k, 0.0) + float(v) * len(chunk) / len(examples)
    return {f"eval_{k}": v for k, v in total.items() if k != "weight"}

  def measure(state) -> Evaluation:
    result = Evaluation([], {})
    if judged:
      s, pool, choice = parts.sampling, parts.pool, parts.eval_choice
      result = evaluate(s, state.params, pool, judged, e.batch, e.samples, choice)
    return dataclasses.replace(result, metrics=result.metrics | losses(state))

  return measure
