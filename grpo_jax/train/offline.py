"""The loop without sampling: demonstrations (sft) and preference pairs (dpo), `Fixed` plans.

Read `run` from top to bottom: it is the life of a run. Where completions come from is in
rollout/fixed.py; what a step does to the policy is in the method's file.
"""

import contextlib
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
from grpo_jax.train import export, llm, report, setup
from grpo_jax.train.checkpoint import Checkpoints
from grpo_jax.train.compiles import count_compiles
from grpo_jax.train.metrics import MetricsWriter, paired_gain, read_metrics


def run(c, workdir: Path, say=print) -> dict:
  """Trains `c` in `workdir`, or goes on where the folder's last whole checkpoint stands."""
  start = time.monotonic()
  main = jax.process_index() == 0
  compiles = count_compiles()

  # ---- setup ------------------------------------------------------------------------------------
  c = check(c)
  parts = setup.prepare(c, say)
  say(setup.plan(c, parts))
  spec = PromptSpec.of(c.data.to_dict().get("prompt"))
  train, heldout = (
    fixed.examples(parts.sampling, problems, spec, c.batch.group)
    for problems in (parts.data.train, parts.data.heldout[: c.eval.problems])
  )
  setup.save_config(c, workdir)
  stream = PromptStream(parts.data.train, seed=c.seed, order=parts.data.order)
  checkpoints = Checkpoints(workdir, c.checkpoint.keep, say)
  state, first = parts.state, 0
  if (found := checkpoints.restore(state)) is not None:
    first, state, host = found
    stream.restore(host["stream"])
    checkpoints.discard_after(first)
    say(f"resumed after step {first}")
  export.check(c, first)
  evals = llm.Evaluations(workdir, first)
  writer = MetricsWriter(workdir, c.steps, c.log.tensorboard and main, keep_below_step=first + 1)
  held_out_loss = make_held_out_loss(c, parts, list(heldout.values()))

  def held_out(step: int) -> Evaluation:
    result = evals.read(step)
    if result is None:
      result = accuracy(c, parts, state.params, [e.problem for e in heldout.values()])
      loss = held_out_loss(state)
      result = dataclasses.replace(result, metrics=result.metrics | loss)
      if main:
        evals.write(step, result)
      writer.end_line()
      say(f"step {step}: held-out loss {loss['eval_loss']:.4f}, accuracy {_percent(result)}")
    if main and not any(r["kind"] == "eval" and r["step"] == step for r in read_metrics(workdir)):
      writer.write(step, result.metrics, kind="eval")
    return result

  # ---- loop -------------------------------------------------------------------------------------
  before = held_out(0)
  for step in range(first + 1, c.steps + 1):
    clock = time.monotonic()

    # the next completions of the data
    weights = parts.method.weigh(state.method_state) if parts.method.weigh else None
    drawn = stream.next(c.batch.prompts, None if weights is None else np.asarray(weights))
    got = fixed.assemble(parts.sampling, [train[p.id] for p in drawn])

    # score: what the method needs to know of the old and the reference policy
    rollouts, batch = place(parts, got)
    if not parts.cut.on_policy or "logp_old" in parts.method.needs:
      batch = batch.replace(logp_old=parts.score(state.params, batch).logp)

    # credit, update, remember: one compiled program
    updated = time.monotonic()
    key = jax.random.fold_in(jax.random.key(c.seed + 1), step)
    state, metrics, per_token = parts.update(state, rollouts, batch, key)
    row = {k: float(v) for k, v in sharding.fetch(metrics).items()}

    # log, evaluate, save
    done = time.monotonic()
    row |= {"length": float(got.rollouts.length.mean()), "compiles": compiles()}
    row |= {
      "time_score": updated - clock,
      "time_update": done - updated,
      "time_total": done - clock,
    }
    if main:
      writer.write(step, row)
      writer.progress(step, row)
    if not np.isfinite(row["loss"]) or not np.isfinite(row["grad_norm"]):
      report.write_report(workdir)
      raise UserError(
        f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}: the run has diverged; "
        f"lower optimizer.lr={c.optimizer.lr} and start in another --workdir"
      )
    if step % c.log.rollouts_every == 0 or step in (1, c.steps):
      per_token = sharding.fetch(per_token)
      if main:
        llm.log_rollouts(workdir, step, got, per_token, parts, c.log.rollouts_prompts)
    if c.eval.every and step % c.eval.every == 0 and step < c.steps:
      held_out(step)
    if step % c.checkpoint.every == 0 or step == c.steps:
      checkpoints.save(step, state, {"stream": stream.state()})

  # ---- end --------------------------------------------------------------------------------------
  after = held_out(c.steps)
  gain = paired_gain(before.correct, after.correct)
  final = {
    "accuracy_before": before.metrics.get("eval_accuracy"),
    "accuracy_after": after.metrics.get("eval_accuracy"),
    "gain": gain.gain,
    "gain_low": gain.low,
    "gain_high": gain.high,
    "problems": gain.problems,
    "loss_before": before.metrics["eval_loss"],
    "loss_after": after.metrics["eval_loss"],
    "steps": c.steps,
    "wall_s": time.monotonic() - start,
  }
  checkpoints.close()
  parts.pool.close()
  export.export(c, parts, state, say)
  writer.end_line()
  say(
    f"held-out loss {final['loss_before']:.4f} -> {final['loss_after']:.4f}, accuracy "
    f"{_percent(before)} -> {_percent(after)} on {gain.problems} problems"
  )
  if main:
    writer.finish(final)
    with contextlib.suppress(OSError):
      report.write_report(workdir)
  return final


def check(c):
  """Refuses a wrong number of completions; returns the config with the data's `needs` filled in."""
  method = setup.make_method(c)
  wanted = 2 if method.whole_groups else 1
  if c.batch.group != wanted:
    raise UserError(
      f"batch.group={c.batch.group}: {c.method} learns from {wanted} given completion(s) a prompt; "
      f"use batch.group={wanted}"
    )
  if c.eval.problems < 1:
    raise UserError("eval.problems=0: hold out at least one problem, to measure by")
  if c.data.get("source") != "reasoning_gym" and "needs" not in c.data:
    c = c.copy_and_resolve_references()
    with c.unlocked():
      c.data.needs = ("completion",) if wanted == 1 else ("chosen", "rejected")
  return c


def accuracy(c, parts, params, problems) -> Evaluation:
  """Greedy accuracy on the problems that can be judged: those with an answer or a task's scorer."""
  judged = [p for p in problems if p.answer is not None or "task" in p.meta]
  if not judged:
    return Evaluation([], {})
  e = c.eval
  return evaluate(parts.sampling, params, parts.pool, judged, e.batch, e.samples, parts.eval_choice)


def place(parts, got):
  """Rollouts and batch on the devices, with the reference's log-probabilities if it has a part."""
  rollouts = sharding.put(got.rollouts, sharding.replicated(parts.mesh))
  batch = sharding.put(got.batch, sharding.rows(parts.mesh))
  if parts.reference is not None:
    batch = batch.replace(logp_ref=parts.score(parts.reference, batch).logp)
  return rollouts, batch


def make_held_out_loss(c, parts, examples):
  """state -> {"eval_loss", ...}: the method's own loss and metrics on held-out completions.

  Means over batches, each counting as its examples; the last batch is filled with dead ones.
  """
  size = c.batch.prompts

  @jax.jit
  def measure(method_state, rollouts, batch, fwd):
    credit = parts.method.credit(method_state, rollouts, batch)
    loss, metrics = parts.method.loss(fwd, batch, credit)
    return metrics | {"loss": loss}

  def held_out_loss(state) -> dict[str, float]:
    total: dict[str, float] = {}
    for i in range(0, len(examples), size):
      chunk = examples[i : i + size]
      full = chunk + [chunk[0]] * (size - len(chunk))
      rollouts, batch = place(parts, fixed.assemble(parts.sampling, full, len(chunk)))
      fwd = parts.score(state.params, batch)
      for k, v in sharding.fetch(measure(state.method_state, rollouts, batch, fwd)).items():
        total[k] = total.get(k, 0.0) + float(v) * len(chunk) / len(examples)
    return {f"eval_{k}": v for k, v in total.items() if k != "weight"}

  return held_out_loss


def _percent(result: Evaluation) -> str:
  value = result.metrics.get("eval_accuracy")
  return "not measured (no answers)" if value is None else f"{value:.1%}"
