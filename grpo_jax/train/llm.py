"""The loop for real language models: host rewards, a compiled sampler and a compiled update.

Read `run` from top to bottom: it is the life of a run. What a step does to the policy is in the
method's file; how arrays are laid out is in types.py.
"""

import contextlib
import json
import time
from pathlib import Path

import jax
import numpy as np

from grpo_jax import sharding
from grpo_jax.data.stream import PromptStream
from grpo_jax.errors import UserError
from grpo_jax.rollout.collect import Collected, collect
from grpo_jax.rollout.evaluate import Evaluation, evaluate
from grpo_jax.rollout.pack import unpack
from grpo_jax.train import export, report, rollout_log, setup
from grpo_jax.train.checkpoint import Checkpoints
from grpo_jax.train.compiles import count_compiles
from grpo_jax.train.metrics import MetricsWriter, paired_gain, read_metrics
from grpo_jax.types import Flat


def run(c, workdir: Path, say=print) -> dict:
  """Trains `c` in `workdir`, or goes on where the folder's last whole checkpoint stands."""
  start = time.monotonic()
  main = jax.process_index() == 0
  compiles = count_compiles()

  # ---- setup ------------------------------------------------------------------------------------
  setup.save_config(c, workdir)
  parts = setup.prepare(c, say)
  say(setup.plan(c, parts))
  stream = PromptStream(parts.data.train, seed=c.seed, order=parts.data.order)
  checkpoints = Checkpoints(workdir, c.checkpoint.keep, say)
  state, first = parts.state, 0
  if (found := checkpoints.restore(state)) is not None:
    first, state, host = found
    stream.restore(host["stream"])
    checkpoints.discard_after(first)
    say(f"resumed after step {first}")
  export.check(c, first)
  evals = Evaluations(workdir, first)
  writer = MetricsWriter(workdir, c.steps, c.log.tensorboard and main, keep_below_step=first + 1)
  heldout = parts.data.heldout[: c.eval.problems]

  def held_out(step: int) -> Evaluation:
    result = evals.read(step)
    if result is None:
      result = evaluate(
        parts.sampling,
        state.params,
        parts.pool,
        heldout,
        c.eval.batch,
        c.eval.samples,
        parts.eval_choice,
      )
      if main:
        evals.write(step, result)
      writer.end_line()
      say(f"step {step}: held-out " + _accuracies(result.metrics))
    if main and not any(r["kind"] == "eval" and r["step"] == step for r in read_metrics(workdir)):
      writer.write(step, result.metrics, kind="eval")
    return result

  # ---- loop -------------------------------------------------------------------------------------
  before = held_out(0)
  for step in range(first + 1, c.steps + 1):
    clock = time.monotonic()

    # sample, verify: completions from the policy, rewards from processes of their own
    weights = parts.method.weigh(state.method_state) if parts.method.weigh else None
    draw = lambda n: stream.next(n, None if weights is None else np.asarray(weights))
    plan = parts.method.plan if isinstance(parts.method.plan, Flat) else Flat()
    got = collect(parts.sampling, state.params, parts.pool, draw, c.batch.prompts, step, plan)

    # score: what the method needs to know of the old and the reference policy
    scored = time.monotonic()
    batch = sharding.put(got.batch, sharding.rows(parts.mesh))
    if not parts.cut.on_policy or "logp_old" in parts.method.needs or "value" in parts.method.needs:
      old = parts.score(state.params, batch)
      batch = batch.replace(logp_old=old.logp)
      if old.value is not None:
        batch = batch.replace(extra={"value": old.value})
    if parts.reference is not None:
      batch = batch.replace(logp_ref=parts.score(parts.reference, batch).logp)

    # credit, update, remember: one compiled program
    updated = time.monotonic()
    rollouts = sharding.put(got.rollouts, sharding.replicated(parts.mesh))
    key = jax.random.fold_in(jax.random.key(c.seed + 1), step)
    state, metrics, per_token = parts.update(state, rollouts, batch, key)
    metrics = sharding.fetch(metrics)

    # log, evaluate, save
    done = time.monotonic()
    seconds = got.seconds | {
      "score": updated - scored,
      "update": done - updated,
      "total": done - clock,
    }
    row = summarize(got, metrics, seconds) | {"compiles": compiles()}
    if main:
      writer.write(step, row)
      writer.progress(step, row)
      _complain(got, step, writer, say)
    if not np.isfinite(row["loss"]) or not np.isfinite(row["grad_norm"]):
      report.write_report(workdir)
      raise UserError(
        f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}: the run has diverged; "
        f"lower optimizer.lr={c.optimizer.lr} and start in another --workdir"
      )
    if step % c.log.rollouts_every == 0 or step in (1, c.steps):
      per_token = sharding.fetch(per_token)
      if main:
        log_rollouts(workdir, step, got, per_token, parts, c.log.rollouts_prompts)
    if c.eval.every and step % c.eval.every == 0 and step < c.steps:
      held_out(step)
    if step % c.checkpoint.every == 0 or step == c.steps:
      checkpoints.save(step, state, {"stream": stream.state()})

  # ---- end --------------------------------------------------------------------------------------
  after = held_out(c.steps)
  gain = paired_gain(before.correct, after.correct)
  final = {
    "accuracy_before": before.metrics["eval_accuracy"],
    "accuracy_after": after.metrics["eval_accuracy"],
    "gain": gain.gain,
    "gain_low": gain.low,
    "gain_high": gain.high,
    "problems": gain.problems,
    "steps": c.steps,
    "wall_s": time.monotonic() - start,
  }
  final |= {
    f"accuracy_{when}/{name.split('/')[1]}": value
    for when, e in (("before", before), ("after", after))
    for name, value in e.metrics.items()
    if name.startswith("eval_accuracy/")
  }
  checkpoints.close()
  parts.pool.close()
  export.export(c, parts, state, say)
  writer.end_line()
  say(
    f"held-out accuracy {final['accuracy_before']:.1%} -> {final['accuracy_after']:.1%} on "
    f"{gain.problems} problems: {gain.gain:+.1%}, 95% interval [{gain.low:+.1%}, {gain.high:+.1%}]"
  )
  if main:
    writer.finish(final)
    with contextlib.suppress(OSError):
      report.write_report(workdir)
  return final


class Evaluations:
  """Held-out results of this run as workdir/eval/step_*.json; those after `last` are of a past that
  a resume undoes."""

  def __init__(self, workdir: Path, last: int):
    self.folder = workdir / "eval"
    for path in self.folder.glob("step_*.json"):
      if int(path.stem.removeprefix("step_")) > last:
        path.unlink(missing_ok=True)

  def _path(self, step: int) -> Path:
    return self.folder / f"step_{step:06d}.json"

  def read(self, step: int) -> Evaluation | None:
    path = self._path(step)
    return Evaluation(**json.loads(path.read_text())) if path.exists() else None

  def write(self, step: int, result: Evaluation) -> None:
    self.folder.mkdir(exist_ok=True)
    temporary = self._path(step).with_suffix(".tmp")
    temporary.write_text(json.dumps({"correct": result.correct, "metrics": result.metrics}))
    temporary.replace(self._path(step))


def _complain(got: Collected, step: int, writer, say) -> None:
  """Says when a reward function fails on most of what it is given: zeros would hide it."""
  failed = sum(got.failed.values())
  if failed > got.rollouts.reward.size // 2:
    writer.end_line()
    kinds = ", ".join(f"{n} {kind}" for kind, n in got.failed.items() if n)
    say(
      f"step {step}: most rewards failed ({kinds}); the first message: {'; '.join(got.errors[:1])}"
    )


def summarize(got: Collected, metrics: dict, seconds: dict[str, float]) -> dict[str, float]:
  """One row of metrics.jsonl: what the rollouts were, what the update saw, where time went."""
  r = got.rollouts
  alive = r.alive
  count = max(int(alive.sum()), 1)
  high = np.where(alive, r.reward, -np.inf).max(axis=1)
  low = np.where(alive, r.reward, np.inf).min(axis=1)
  row = {
    "reward": float((r.reward * alive).sum() / count),
    "correct": float((r.correct & alive).sum() / count),
    "length": float((r.length * alive).sum() / count),
    "truncated": float((r.truncated & alive).sum() / count),
    "zero_variance": float(np.mean(high <= low)),
    "alive": float(alive.mean()),
    "reward_failed": sum(got.failed.values()),
    "resampled": got.resampled,
  }
  row |= {f"reward_failed/{kind}": n for kind, n in got.failed.items() if n}
  row |= {k.replace("max_logp_gap", "logp_gap"): float(v) for k, v in metrics.items()}
  return row | {f"time_{k}": v for k, v in seconds.items()}


def log_rollouts(workdir, step, got: Collected, per_token, parts, prompts: int) -> None:
  n, g = got.rollouts.reward.shape
  length, width = got.rollouts.length, parts.sampling.budget
  arrays = per_token | {"tokens": np.asarray(got.batch.tokens)}
  if parts.sampling.pack:
    arrays = {k: unpack(np.asarray(v), length, width) for k, v in arrays.items()}
  arrays["tokens"] = arrays["tokens"].reshape(n, g, -1)
  texts = parts.sampling.tokenizer.token_texts
  groups = rollout_log.groups_of(
    prompt_id=got.rollouts.prompt,
    prompts=[p.prompt for p in got.problems],
    labels=[str(p.meta.get("source")) for p in got.problems],
    answers=[p.answer for p in got.problems],
    texts=got.texts,
    length=length,
    reward=got.rollouts.reward,
    parts=got.rollouts.parts,
    part_names=parts.pool.names,
    correct=got.rollouts.correct,
    truncated=got.rollouts.truncated,
    token_texts=lambda ids: [texts[i] for i in ids],
    limit=prompts,
    **arrays,
  )
  rollout_log.write_rollouts(workdir, step, groups, limit=prompts)


def _accuracies(metrics: dict) -> str:
  labels = [k for k in metrics if k.startswith("eval_accuracy/")]
  each = ", ".join(f"{k.split('/')[1]} {metrics[k]:.1%}" for k in labels)
  return f"accuracy {metrics['eval_accuracy']:.1%} ({each})"
