"""What a run leaves in its folder and on the screen; of several processes, the first one does."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpo_jax import sharding
from grpo_jax.errors import UserError
from grpo_jax.rollout.collect import Collected
from grpo_jax.rollout.evaluate import Evaluation
from grpo_jax.rollout.pack import unpack
from grpo_jax.run import atomic, folder, report, rollout_log
from grpo_jax.run.metrics import MetricsWriter, paired_gain, read_metrics


class Evaluations:
  """Held-out results as workdir/eval/step_*.json; those after `last` are of a past that a resume
  undoes."""

  def __init__(self, workdir: Path, last: int):
    self.folder = workdir / "eval"
    if jax.process_index() == 0:
      for path in self.folder.glob("step_*.json"):
        if int(path.stem.removeprefix("step_")) > last:
          path.unlink(missing_ok=True)

  def _path(self, step: int) -> Path:
    return self.folder / f"step_{step:06d}.json"

  def read(self, step: int) -> Evaluation | None:
    """On every process, what the first one finds."""

    def look():
      path = self._path(step)
      return json.loads(path.read_text()) if path.exists() else None

    found = sharding.from_first(look)
    return None if found is None else Evaluation(**found)

  def write(self, step: int, result: Evaluation) -> None:
    self.folder.mkdir(exist_ok=True)
    kept = {"correct": result.correct, "metrics": result.metrics}
    atomic.write_json(self._path(step), kept)


class Journal:
  """metrics.jsonl, eval/, rollouts/, final.json, report.html and the live line of one run.

  first: the step after which the run goes on; what the folder holds of later steps is dropped.
  """

  def __init__(self, c, workdir: Path, first: int, say: Callable[[str], None]):
    self.c, self.workdir = c, workdir
    self.main = jax.process_index() == 0
    self._say = say
    self.evaluations = Evaluations(workdir, first)
    self.writer = None
    if self.main:
      self.writer = MetricsWriter(workdir, c.steps, c.log.tensorboard, keep_below_step=first + 1)

  def say(self, text: str) -> None:
    if self.writer is not None:
      self.writer.end_line()
      self._say(text)

  def evaluated(self, step: int, work: Callable[[], Evaluation]) -> Evaluation:
    """The held-out result of `step`: the folder's, else `work`'s, which is written down."""
    result = self.evaluations.read(step)
    if result is None:
      result = work()
      if self.main:
        self.evaluations.write(step, result)
      self.say(f"step {step}: held-out " + _accuracies(result.metrics))
    if self.writer is not None and not _has_eval_row(self.workdir, step):
      self.writer.write(step, result.metrics, kind="eval")
    return result

  def step(self, step: int, got: Collected, metrics: dict, seconds: dict, compiled: int) -> None:
    """One row; the live line; what a person must know. UserError if the run has diverged."""
    row = summarize(got, metrics, seconds) | {"compiles": compiled}
    if self.writer is not None:
      self.writer.write(step, row)
      self.writer.progress(step, row)
    if text := failures(got):
      self.say(f"step {step}: {text}")
    if not np.isfinite(row["loss"]) or not np.isfinite(row["grad_norm"]):
      self.report()
      raise UserError(
        f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}: the run has diverged; "
        f"lower optimizer.lr={self.c.optimizer.lr} and start in another --workdir"
      )

  def rollouts(self, step: int, got: Collected, per_token, parts) -> None:
    """Every log.rollouts_every steps, and at the first and the last step."""
    if step % self.c.log.rollouts_every and step not in (1, self.c.steps):
      return
    per_token = sharding.to_host(per_token)
    if self.main:
      log_rollouts(self.workdir, step, got, per_token, parts, self.c.log.rollouts_prompts)

  def finish(self, before: Evaluation, after: Evaluation, wall_s: float) -> dict:
    """The last line, final.json and the report."""
    final = outcome(before, after) | {"steps": self.c.steps, "wall_s": wall_s}
    if "loss_before" in final:
      self.say(f"held-out loss {final['loss_before']:.4f} -> {final['loss_after']:.4f}")
    if final["problems"]:
      self.say(
        f"held-out accuracy {final['accuracy_before']:.1%} -> {final['accuracy_after']:.1%} on "
        f"{final['problems']} problems: {final['gain']:+.1%}, 95% interval "
        f"[{final['gain_low']:+.1%}, {final['gain_high']:+.1%}]"
      )
    final = folder.final_of(self.workdir, self.c.steps) or final  # a run that had ended: as it was
    if self.writer is not None:
      self.writer.finish(final)
      self.report()
    return final

  def report(self) -> None:
    if self.main:
      with contextlib.suppress(OSError):
        report.write_report(self.workdir)


def finished(c, workdir: Path) -> dict | None:
  """final.json of a run that has made all its steps, printed once more; else None."""
  exported = not c.export or Path(c.export).exists()
  final = sharding.from_first(lambda: folder.final_of(workdir, c.steps) if exported else None)
  if final is not None and jax.process_index() == 0:
    folder.say_again(workdir, final, f"raise steps={c.steps} to go on")
  return final


def outcome(before: Evaluation, after: Evaluation) -> dict:
  """Accuracies before and after, in all and by source, and the gain with its interval; held-out
  loss where it was measured. Without problems that can be judged, accuracies are None."""
  gain = paired_gain(before.correct, after.correct)
  final = {
    "accuracy_before": before.metrics.get("eval_accuracy"),
    "accuracy_after": after.metrics.get("eval_accuracy"),
    "gain": gain.gain,
    "gain_low": gain.low,
    "gain_high": gain.high,
    "problems": gain.problems,
  }
  for when, e in (("before", before), ("after", after)):
    if "eval_loss" in e.metrics:
      final[f"loss_{when}"] = e.metrics["eval_loss"]
    for name, value in e.metrics.items():
      if name.startswith("eval_accuracy/"):
        final[f"accuracy_{when}/{name.split('/')[1]}"] = value
  return final


def failures(got: Collected) -> str | None:
  """What to say when a reward function fails on most of what it is given: zeros would hide it."""
  failed = sum(got.failed.values())
  if failed <= got.rollouts.reward.size // 2:
    return None
  kinds = ", ".join(f"{n} {kind}" for kind, n in got.failed.items() if n)
  return f"most rewards failed ({kinds}); the first message: {'; '.join(got.errors[:1])}"


def summarize(got: Collected, metrics: dict, seconds: dict[str, float]) -> dict[str, float]:
  """One row of metrics.jsonl: what the rollouts were, what the update saw, where time went.

  Of completions that were given (no reward parts), only how long they are and how many count.
  Demonstrations beside samples do not count.
  """
  r = got.rollouts if got.shown is None else got.shown
  sampled = np.ones_like(r.alive) if r.given is None else ~np.asarray(r.given)
  alive = r.alive & sampled
  count = max(int(alive.sum()), 1)
  high = np.where(alive, r.reward, -np.inf).max(axis=1)
  low = np.where(alive, r.reward, np.inf).min(axis=1)
  row = {
    "reward": float((r.reward * alive).sum() / count),
    "correct": float((r.correct & alive).sum() / count),
    "length": float((r.length * alive).sum() / count),
    "truncated": float((r.truncated & alive).sum() / count),
    "zero_variance": float(np.mean(high <= low)),
    "alive": float(alive.sum() / sampled.sum()),
    "reward_failed": sum(got.failed.values()),
    "resampled": got.resampled,
    **got.counts,
  }
  if r.parts is None:
    row = {k: row[k] for k in ("length", "alive")}
  row |= {f"reward_failed/{kind}": n for kind, n in got.failed.items() if n}
  row |= {k.replace("max_logp_gap", "logp_gap"): float(v) for k, v in metrics.items()}
  return row | {f"time_{k}": v for k, v in seconds.items()}


def log_rollouts(workdir, step, got: Collected, per_token, parts, prompts: int) -> None:
  r = got.rollouts if got.shown is None else got.shown
  n, g = r.reward.shape
  length, width = np.asarray(r.length), parts.sampling.budget
  arrays: dict[str, Any] = per_token | {"tokens": np.asarray(got.batch.tokens)}
  if parts.sampling.pack:
    arrays = {k: unpack(np.asarray(v), length, width) for k, v in arrays.items()}
  arrays["tokens"] = arrays["tokens"].reshape(n, g, -1)
  texts = parts.sampling.tokenizer.token_texts
  groups = rollout_log.groups_of(
    prompt_id=r.prompt,
    prompts=[p.prompt for p in got.problems],
    labels=[str(p.meta.get("source")) for p in got.problems],
    answers=[p.answer for p in got.problems],
    texts=got.texts,
    length=length,
    reward=r.reward,
    parts=r.parts,
    part_names=parts.pool.names,
    correct=r.correct,
    truncated=r.truncated,
    token_texts=lambda ids: [texts[i] for i in ids],
    limit=prompts,
    **arrays,
  )
  rollout_log.write_rollouts(workdir, step, groups, limit=prompts)


def _has_eval_row(workdir: Path, step: int) -> bool:
  return any(r["kind"] == "eval" and r["step"] == step for r in read_metrics(workdir))


def _accuracies(metrics: dict) -> str:
  if "eval_accuracy" not in metrics:
    return f"loss {metrics['eval_loss']:.4f}, no answers to judge by"
  labels = [k for k in metrics if k.startswith("eval_accuracy/")]
  each = ", ".join(f"{k.split('/')[1]} {metrics[k]:.1%}" for k in labels)
  return f"accuracy {metrics['eval_accuracy']:.1%} ({each})"
