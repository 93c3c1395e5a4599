"""The host side of in-context pretraining: several seeds at once, marks, checkpoints, a report.

`run` is the life of a run; what a step and an exam are stands in in_context.py and
in_context_exam.py. All that is random hangs on (seed, step), so a run that was stopped goes on as
if it had not been.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import methods
from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.models.moe.layer import MoEConfig, dense_of
from grpo_jax.rollout.in_context.tokens import Layout
from grpo_jax.run import atomic, folder, in_context_page
from grpo_jax.run.checkpoint import Checkpoints
from grpo_jax.run.metrics import MetricsWriter, duration
from grpo_jax.train.programs import in_context as program
from grpo_jax.train.programs import in_context_exam as exams
from grpo_jax.train.programs import in_context_histories
from grpo_jax.train.programs.in_context_data import Source
from grpo_jax.train.programs.seeds import over_seeds

WHOLE = ("seeds", "steps", "log.every", "checkpoint.every", "checkpoint.keep", "eval.every")


def run(c, workdir: Path, say=print) -> dict:
  """Trains `c.seeds` models in `workdir`, or goes on where its last whole checkpoint stands."""
  start = time.monotonic()
  layout, method, config, plan = parts_of(c)
  folder.check_folder(c, workdir)
  if (final := folder.final_of(workdir, c.steps)) is not None:
    in_context_page.write(workdir)
    folder.say_again(workdir, final, f"raise steps={c.steps} to go on")
    return final
  layout, train, heldout = sources(c, layout, say)
  made = program.make_program(layout, method, config, plan, train)
  folder.save_config(c, workdir)
  seeds = c.seed + jnp.arange(c.seeds, dtype=jnp.int32)
  state = over_seeds(lambda seed, _: made.init(seed))(seeds, seeds)
  stretch = over_seeds(made.stretch)
  examine = Examiner(layout, config, plan, family_of(c)[1], workdir, heldout)

  checkpoints = Checkpoints(workdir, c.checkpoint.keep, say)
  first = 0
  if (found := checkpoints.restore(state)) is not None:
    first, state, _ = found
    folder.check_steps(c, first)
    checkpoints.discard_after(first)
    say(f"resumed after step {first}")
  examine.forget_after(first)
  writer = MetricsWriter(workdir, c.steps, c.log.tensorboard, keep_below_step=first + 1)
  say(describe(c, layout, state))

  if not first:
    _mark(writer, say, 0, examine(0, seeds, state))
  began = time.monotonic()
  for step in range(first + plan.every, c.steps + 1, plan.every):
    clock = time.monotonic()
    state, metrics = stretch(seeds, state)
    metrics = {k: float(np.mean(v)) for k, v in metrics.items()}
    seconds = time.monotonic() - clock
    writer.write(step, metrics | {"time_total": seconds})
    left = (time.monotonic() - began) / (step - first) * (c.steps - step)
    say(
      f"step {step}/{c.steps}  loss {metrics['loss']:.4g}  per label {metrics['nll']:.4f}  "
      f"{c.seeds * plan.every / seconds:.1f} steps/s  left {duration(left)}"
    )
    if not np.isfinite(metrics["loss"]):
      raise UserError(f"step {step}: the loss is {metrics['loss']}; lower optimizer.lr")
    if step % c.eval.every == 0 or step == c.steps:
      _mark(writer, say, step, examine(step, seeds, state))
    if step % c.checkpoint.every == 0 or step == c.steps:
      checkpoints.save(step, state, {})
  checkpoints.close()
  final = examine.final() | {"steps": c.steps, "seeds": c.seeds}
  writer.finish(final | {"wall_s": time.monotonic() - start})
  in_context_page.write(workdir)
  return final


def parts_of(c):
  """(layout, method, config, plan) of a config. UserError, one line, for what cannot be."""
  for field in WHOLE:
    value = c
    for name in field.split("."):
      value = value[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise UserError(f"{field}={value!r}: must be a whole number of at least 1")
  for field in ("eval.every", "checkpoint.every"):
    group, name = field.split(".")
    if c[group][name] % c.log.every:
      raise UserError(f"{field}={c[group][name]}: must be a multiple of log.every={c.log.every}")
  name, params = family_of(c)
  family = contextual.get(name, **params)
  layout = Layout(family, family.steps, c.tokens)
  size = exams.Size(c.eval.tasks, c.eval.steps, c.eval.episodes, c.eval.greedy, c.eval.explore)
  exams.check(layout, size)
  o = c.optimizer
  if not 0 <= o.b2 < 1:
    raise UserError(f"optimizer.b2={o.b2}: must be at least 0 and below 1")
  if not o.lr > 0 or o.clip_norm < 0 or o.weight_decay < 0 or o.warmup < 0:
    raise UserError(
      f"optimizer.lr={o.lr}, clip_norm={o.clip_norm}, weight_decay={o.weight_decay}, "
      f"warmup={o.warmup}: lr must be above 0, the others at least 0"
    )
  plan = program.Sizes(
    steps=c.steps,
    batch=c.batch,
    lr=o.lr,
    schedule=o.schedule,
    warmup=o.warmup,
    weight_decay=o.weight_decay,
    clip_norm=o.clip_norm,
    b2=o.b2,
    wide=c.model.wide,
    pairs=c.pairs,
    every=c.log.every,
    exam=size,
  )
  method = methods.get(c.method, **c.method_args)
  program.check(method)
  m = c.model
  config = program.make_config(
    layout, hidden=m.hidden, layers=m.layers, heads=m.heads, ffn=m.ffn, moe=_moe(c.moe, m.hidden)
  )
  return layout, method, config, plan


def family_of(c) -> tuple[str, dict]:
  """(name, arguments) of data.family. UserError without a name."""
  params = {k: v for k, v in c.data.to_dict().items() if k != "histories"}
  if "family" not in params:
    raise UserError(f"data.family: missing; use one of {', '.join(contextual.names())}")
  return params.pop("family"), params


def sources(c, layout: Layout, say=print) -> tuple[Layout, Source | None, Source | None]:
  """(layout, train, heldout): where contexts of training and of held-out tasks come from. Learning
  histories, where `data.histories` names them, else the family (None). The layout has the norm of
  the states of continuous histories. UserError as in_context_histories.obtain."""
  if "histories" not in c.data:
    if layout.history:
      raise UserError(f"tokens={layout.kind!r}: set data.histories")
    return layout, None, None
  plan = in_context_histories.plan_of(c.data.histories.to_dict())
  train, heldout = in_context_histories.both(layout.family, layout.steps, plan, say)
  if layout.family.continuous:
    layout = layout.normed(np.asarray(train.steps.state))
  whole = layout.family.horizon if layout.kind == "episodes" else 0
  made = lambda histories: in_context_histories.source(histories, whole)
  return layout, made(train), made(heldout)


def _moe(m, width: int) -> MoEConfig | None:
  """The experts of the last layer; None without any. `dense`: as many weights as a token meets."""
  if not (m.experts or m.task_experts):
    return None
  fields = ("experts", "task_experts", "top_k", "hidden", "noisy", "hard", "softmax", "skip")
  made = MoEConfig(**{name: m[name] for name in fields})
  return dense_of(made, width) if m.dense else made


def describe(c, layout: Layout, state) -> str:
  size = sum(x.size for x in jax.tree.leaves(state.params)) // c.seeds
  return (
    f"plan: {c.seeds} models of {size:,} parameters, {c.steps} steps of {c.batch} contexts of "
    f"{layout.steps} transitions ({layout.length} tokens), {layout.family.name}; method {c.method}"
  )


class Examiner:
  """Marks of all seeds on one exam; exam/step_*.json holds their curves, oracles.json those of the
  oracles. Curves are means over tasks."""

  def __init__(self, layout, config, plan, params: dict, workdir: Path, source=None):
    self.folder = workdir / "exam"
    self.size = plan.exam
    self.exam = jax.jit(lambda: exams.make(layout, plan.exam, params, source))()
    self.best = float(jnp.mean(self.exam.best)) if layout.family.labelled else None
    found = jax.jit(lambda e: exams.oracles(layout, params, e, plan.exam))(self.exam)
    self.oracles = jax.tree.map(np.asarray, found)
    one = lambda seed, params: exams.evaluate(layout, config, params, self.exam, plan.exam)
    self.evaluate = over_seeds(one)
    self.folder.mkdir(parents=True, exist_ok=True)
    means = jax.tree.map(lambda x: np.mean(x, axis=0).tolist(), self.oracles)
    totals = {k: np.sum(v, axis=1).tolist() for k, v in self.oracles["online"].items()}
    means |= {"best": self.best, "regret_by_task": totals}
    atomic.write_json(workdir / "oracles.json", means)

  def __call__(self, step: int, seeds, state) -> dict[str, float]:
    marks = {k: np.asarray(v) for k, v in self.evaluate(seeds, state.params).items()}
    curves = {k: np.mean(v, axis=1) for k, v in marks.items()}  # [seeds, ...]
    numbers = summarize(curves)
    kept = {"step": step, "curves": {k: v.tolist() for k, v in curves.items()}, "numbers": numbers}
    if "online" in marks:
      kept["regret_by_task"] = np.sum(marks["online"], axis=2).tolist()
    atomic.write_json(self.folder / f"step_{step:06d}.json", kept)
    return {f"eval_{k}": float(np.mean(v)) for k, v in numbers.items()}

  def forget_after(self, step: int) -> None:
    for path in self.folder.glob("step_*.json"):
      if int(path.stem.removeprefix("step_")) > step:
        path.unlink()

  def final(self) -> dict[str, Any]:
    """The last marks: mean, least and greatest over seeds; and the oracles' regret."""
    last = json.loads(max(self.folder.glob("step_*.json")).read_text())["numbers"]
    out: dict[str, Any] = {}
    for name, each in last.items():
      out |= {name: float(np.mean(each)), f"{name}_min": min(each), f"{name}_max": max(each)}
    for name, value in self.oracles["online"].items():
      out[f"regret_{name}"] = float(np.mean(np.sum(value, axis=1)))
    for name, value in self.oracles["offline"].items():
      out[f"offline_{name}"] = float(np.mean(value[:, -1]))
    for name, value in self.oracles["return"].items():
      out[f"return_{name.replace(' ', '_')}"] = float(np.mean(value[:, -1]))
    known = self.best is not None and not self.oracles["online"]
    return out | {"best": self.best} if known else out


def summarize(curves: dict[str, np.ndarray]) -> dict[str, list[float]]:
  """One number a seed of each mark: regret at the end, the last return, and so on."""
  out = {}
  if "online" in curves:
    out["regret"] = np.sum(curves["online"], axis=1)
    out["offline"] = curves["offline"][:, -1]
    if "distance" in curves:
      out["distance"] = np.mean(curves["distance"], axis=1)
  else:
    out["return"] = curves["return"][:, -1]
    out["first_return"] = curves["return"][:, 0]
    if "right" in curves:
      out["right"] = curves["right"][:, -1]
    if "offline" in curves:
      out["offline"] = curves["offline"]
  return {k: [float(x) for x in v] for k, v in out.items()}


def _mark(writer: MetricsWriter, say, step: int, marks: dict[str, float]) -> None:
  writer.write(step, marks, kind="eval")
  shown = "  ".join(f"{k.removeprefix('eval_')} {v:.4g}" for k, v in marks.items())
  say(f"step {step}: {shown}")
