"""From a config to the parts of a run, and the plan that is printed before anything compiles."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpo_jax import data, methods, sharding
from grpo_jax.errors import UserError
from grpo_jax.models import decoder, loading, policy
from grpo_jax.rollout.choose import Choice
from grpo_jax.rollout.collect import Sampling, bucket, common_start
from grpo_jax.train.optimizer import make_optimizer
from grpo_jax.train.update import Cut, init_state, make_update
from grpo_jax.types import Fixed, Method, TrainState
from grpo_jax.verifiers.pool import RewardPool


@dataclasses.dataclass
class Run:
  """Everything that a loop needs, made once."""

  mesh: Any
  method: Method
  data: Any
  pool: RewardPool
  sampling: Sampling
  eval_choice: Choice
  state: TrainState
  reference: Any  # parameters of the frozen reference policy, or None
  score: Any  # compiled forward pass
  update: Any  # compiled update
  cut: Cut


def check(c) -> None:
  """Refuses what could only fail later. Each message names the field and the fix."""
  b = c.batch
  for name, value in (("steps", c.steps), *((f"batch.{k}", v) for k, v in b.items())):
    if value < 1:
      raise UserError(f"{name}={value}: must be at least 1")
  if b.prompts % b.mini:
    raise UserError(f"batch.prompts={b.prompts} must be a multiple of batch.mini={b.mini}")
  if b.prompts // b.mini % b.micro:
    raise UserError(
      f"batch.prompts / batch.mini = {b.prompts // b.mini} must be a multiple of batch.micro={b.micro}"
    )
  if c.sample.max_new_tokens < 2:
    raise UserError("sample.max_new_tokens: must be at least 2 (an answer and its end)")
  if problem := Choice(temperature=c.sample.temperature).check_trainable():
    raise UserError(f"sample.{problem}")


def make_method(c) -> Method:
  args = dict(c.method_args)
  if methods.defaults(c.method).get("max_tokens", 0) in (None, ...):
    args = {"max_tokens": c.sample.max_new_tokens} | args
  method = methods.get(c.method, **args)
  if isinstance(method.plan, Fixed) != (c.loop == "offline"):
    fit, data = ("offline", "given") if isinstance(method.plan, Fixed) else ("llm", "sampled")
    raise UserError(f"loop={c.loop!r}: {c.method} learns from {data} completions; use loop={fit!r}")
  return method


def prepare(c, say=print) -> Run:
  check(c)
  mesh = sharding.make_mesh(dict(c.mesh))
  if c.batch.prompts // (c.batch.mini * c.batch.micro) % sharding.row_shards(mesh):
    raise UserError(
      f"batch.prompts={c.batch.prompts}: a micro-batch of "
      f"{c.batch.prompts // (c.batch.mini * c.batch.micro)} prompts must be a multiple of "
      f"mesh.data * mesh.fsdp = {sharding.row_shards(mesh)}"
    )
  method = make_method(c)
  start = time.monotonic()
  config, params, tokenizer = loading.load(c.model)
  dataset = data.load(c.data.to_dict(), render=tokenizer.chat)
  if len(dataset.heldout) < c.eval.problems:
    raise UserError(
      f"eval.problems={c.eval.problems}: only {len(dataset.heldout)} problems are held out; lower "
      "it or raise data.heldout"
    )
  parts = [p if isinstance(p, str) else dict(p) for p in c.reward.parts] or dataset.scorer_spec
  pool = RewardPool(
    parts,
    workers=c.reward.workers,
    timeout_s=c.reward.timeout_s,
    memory_mb=c.reward.memory_mb,
    tasks=dataset.tasks,
  ).start()
  say(f"model {c.model} loaded in {time.monotonic() - start:.1f} s")

  stop = tuple(c.sample.stop) or ((dataset.stop,) if dataset.stop else ())
  prompts = [p.prompt for p in (*dataset.train, *dataset.heldout)]
  if c.score.pack and "value" in method.needs:
    raise UserError(f"score.pack: method {c.method} reads values along a row; set it to False")
  sampling = Sampling(
    config=config,
    tokenizer=tokenizer,
    group=c.batch.group,
    budget=c.sample.max_new_tokens,
    max_prompt=c.sample.max_prompt_tokens,
    stop=stop,
    stop_ids=tokenizer.stop_ids(stop),
    choice=Choice(temperature=c.sample.temperature),
    slots=c.sample.slots,
    seed=c.seed,
    mesh=mesh,
    trunk=common_start(tokenizer, prompts) if c.sample.share_start else (),
    pack=c.score.pack,
  )
  longest = c.sample.max_prompt_tokens + c.sample.max_new_tokens
  if longest > config.max_position:
    raise UserError(
      f"sample.max_prompt_tokens + sample.max_new_tokens = {longest}: the model was made for "
      f"{config.max_position} positions"
    )
  cut = Cut(epochs=c.batch.epochs, mini=c.batch.mini, micro=c.batch.micro)
  tx, schedule = make_optimizer(c.optimizer, c.steps * cut.epochs * cut.mini)
  if "value" in method.needs:
    params["value"] = jax.tree.map(np.asarray, policy.init_value_head(config))
  forward = policy.make_forward(
    config,
    temperature=c.sample.temperature,
    chunk=c.score.chunk,
    remat=c.score.remat,
    trunk=sampling.trunk,
  )
  params = sharding.put(params, sharding.param_specs(params, mesh))
  init = lambda p: init_state(p, tx, method, len(dataset.train))
  shapes = jax.eval_shape(init, params)
  specs = sharding.param_specs(shapes, mesh)
  reference = jax.tree.map(lambda x: x.copy(), params) if "ref" in method.needs else None
  state = jax.jit(init, out_shardings=specs, donate_argnums=0)(params)
  rate = lambda step: schedule(step * cut.epochs * cut.mini)
  return Run(
    mesh=mesh,
    method=method,
    data=dataset,
    pool=pool,
    sampling=sampling,
    eval_choice=Choice(c.eval.temperature, c.eval.top_k, c.eval.top_p),
    state=state,
    reference=reference,
    score=policy.make_score(forward),
    update=make_update(method, forward, tx, cut, rate),
    cut=cut,
  )


def plan(c, run: Run) -> str:
  """Rows, tokens, updates, parameters, memory and arithmetic of a step, before compiling it."""
  s, b = run.sampling, c.batch
  lengths = [len(s.tokenizer.encode(p.prompt)) for p in run.data.train[:64]]
  p, t = bucket(max(lengths)), s.budget
  n_params = decoder.num_params(run.state.params)
  position = b.prompts * p + b.prompts * b.group * t
  repeated = b.prompts * b.group * (p + t)
  held = sum(x.nbytes for x in jax.tree.leaves(run.state))
  grads = n_params * 4 * (1 + (b.micro > 1))
  logits = min(c.score.chunk or 10**9, b.prompts * b.group * t) * s.config.vocab_size * 4 * 3
  updates = c.steps * b.epochs * b.mini
  devices = run.mesh.size
  return "\n".join(
    [
      f"plan: {b.prompts} prompts x {b.group} completions = {b.prompts * b.group} rollouts a step, "
      f"{c.steps} steps, {updates} updates ({b.epochs} epochs x {b.mini} mini x {b.micro} micro)",
      f"      method {c.method}, aggregation and loss in grpo_jax/methods; needs {run.method.needs or 'nothing else'}",
      f"      tokens a step: prompts of at most {p} (seen {min(lengths)} to {max(lengths)}), "
      f"completions of at most {t}; {position:,} positions, {repeated:,} if prompts were repeated",
      f"      {n_params / 1e6:.1f}M parameters; state {held / 1e9:.2f} GB, gradients "
      f"{grads / 1e9:.2f} GB, logits {logits / 1e9:.2f} GB, over {devices} device(s) "
      f"{dict(run.mesh.shape)}",
      f"      arithmetic: {6e-12 * n_params * position:.2f} TFLOP an update at least",
      f"      problems: {len(run.data.train)} to train on, {c.eval.problems} held out",
    ]
  )


def save_config(c, workdir: Path) -> None:
  """config.json; on a resume, refuses a config that would make it another run."""
  path = workdir / "config.json"
  now = json.loads(json.dumps(c.to_dict(), default=str))
  if path.exists():
    before = json.loads(path.read_text())
    free = {"steps", "eval", "checkpoint", "log", "mesh", "export"}
    changed = [
      k for k in sorted(before.keys() | now.keys()) if k not in free and before.get(k) != now.get(k)
    ]
    if changed:
      detail = ", ".join(f"{k} was {json.dumps(before.get(k))[:80]}" for k in changed)
      raise UserError(
        f"{path}: this folder holds a run with another config ({detail}); use another --workdir"
      )
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(now, indent=2) + "\n")
  temporary.replace(path)


__all__ = ["Run", "check", "make_method", "plan", "prepare", "save_config"]
