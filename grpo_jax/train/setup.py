"""From a config to the parts of a run."""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from grpo_jax import data, methods, sharding
from grpo_jax.data.prompts import PromptSpec
from grpo_jax.errors import UserError
from grpo_jax.models import loading, policy
from grpo_jax.rollout import belief, fixed, plans
from grpo_jax.rollout.choose import Choice
from grpo_jax.rollout.collect import Collected, Sampling, bucket, common_start, longest_prompt
from grpo_jax.run.folder import check_folder, check_steps, save_config
from grpo_jax.train import supply
from grpo_jax.train.optimizer import make_optimizer
from grpo_jax.train.outlook import outlook
from grpo_jax.train.update import Cut, credit_of, init_state, make_update
from grpo_jax.types import Flat, Method, TrainState
from grpo_jax.verifiers.pool import RewardPool
from pallas_kernels.prefix_attention import IMPLEMENTATIONS

LEAST = {
  "seed": 0,
  "steps": 1,
  "batch.prompts": 1,
  "batch.group": 1,
  "batch.epochs": 1,
  "batch.mini": 1,
  "batch.micro": 1,
  "sample.max_new_tokens": 2,  # an answer and its end
  "sample.max_prompt_tokens": 1,
  "sample.slots": 0,
  "sample.units": 1,
  "score.chunk": 0,
  "optimizer.warmup": 0,
  "eval.every": 0,
  "eval.problems": 1,
  "eval.batch": 1,
  "eval.samples": 0,
  "checkpoint.every": 1,
  "checkpoint.keep": 1,
  "log.rollouts_every": 1,
  "log.rollouts_prompts": 0,
}


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
  supply: Any  # compiled: the batch with all that the method reads of it
  credit: Any  # compiled credit
  update: Any  # compiled update
  remember: Any  # compiled: what the method keeps, after the update; None if it keeps nothing
  weigh: Any  # compiled sampling weights of the prompts, or None
  cut: Cut


# ---- checks --------------------------------------------------------------------------------------


def check(c) -> None:
  """Refuses what could only fail later. Each message names the field and the fix."""
  for field, least in LEAST.items():
    value = c
    for name in field.split("."):
      value = value[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
      raise UserError(f"{field}={value!r}: must be a whole number of at least {least}")
  b = c.batch
  if c.seed >= 2**31:
    raise UserError(f"seed={c.seed}: must be below 2**31")
  if b.prompts % b.mini:
    raise UserError(f"batch.prompts={b.prompts} must be a multiple of batch.mini={b.mini}")
  if b.prompts // b.mini % b.micro:
    raise UserError(
      f"batch.prompts / batch.mini = {b.prompts // b.mini} must be a multiple of "
      f"batch.micro={b.micro}"
    )
  if problem := Choice(temperature=c.sample.temperature).check_trainable():
    raise UserError(f"sample.{problem}")
  if not 0 < c.eval.top_p <= 1 or c.eval.top_k < 0 or c.eval.temperature < 0:
    raise UserError(
      f"eval.temperature={c.eval.temperature}, eval.top_k={c.eval.top_k}, "
      f"eval.top_p={c.eval.top_p}: want temperature >= 0, top_k >= 0 and 0 < top_p <= 1"
    )


def make_method(c) -> Method:
  """The config's method; UserError if the loop cannot sample for it or give it what it needs."""
  args = dict(c.method_args)
  if methods.defaults(c.method).get("max_tokens", 0) in (None, ...):
    args = {"max_tokens": c.sample.max_new_tokens} | args
  method = methods.get(c.method, **args)
  try:
    plans.check(method.plan, plans.Where(c.loop, "sample.max_new_tokens", c.sample.max_new_tokens))
    given = {*plans.of(method.plan).SUPPLIES} | ({"unit_reward"} if _judges_units(c) else set())
    supply.check(method, c.loop, given)
  except UserError as error:
    raise UserError(f"method={c.method}: {error}") from error
  _check_units(c, method)
  return method


def _judges_units(c) -> int:
  """Units that the rewards judge; 0: none."""
  return max((dict(p).get("units", 0) for p in c.reward.parts if not isinstance(p, str)), default=0)


def _check_units(c, method: Method) -> None:
  units, cut, judged = c.sample.units, c.sample.cut, _judges_units(c)
  if (units > 1) != bool(cut):
    raise UserError(f"sample.units={units}, sample.cut={cut!r}: give both, or neither")
  if judged > units:
    raise UserError(f"sample.units={units}: reward.parts judge {judged} units; make it as many")
  if units > 1 and not (isinstance(method.plan, Flat) and not method.plan.demonstrate):
    raise UserError(f"sample.units={units}: {c.method} has units of its own; set it to 1")
  for asks, why in (
    (units > 1, "sample.units divides its rows"),
    ("value" in method.needs, "the method reads values along a row"),
    ("drift" in method.needs, "the method scores single completions"),
    (plans.of(method.plan).SUPPLIES, "the method's plan has rows of its own"),
  ):
    if c.score.pack and asks:
      raise UserError(f"score.pack: {why}; set it to False")


def _check_rows(c, mesh) -> None:
  """Rows are split over devices evenly, whatever piece of the batch they belong to."""
  piece, shards = c.batch.prompts // (c.batch.mini * c.batch.micro), sharding.row_shards(mesh)
  if piece % shards:
    raise UserError(
      f"batch.prompts={c.batch.prompts}: a micro-batch of {piece} prompts must be a multiple of "
      f"mesh.data * mesh.fsdp = {shards}"
    )


def _check_lengths(c, config, tokenizer, dataset) -> None:
  """Every prompt fits, and the model was made for prompt and completion together."""
  total = c.sample.max_prompt_tokens + c.sample.max_new_tokens
  if total > config.max_position:
    raise UserError(
      f"sample.max_prompt_tokens + sample.max_new_tokens = {total}: the model was made for "
      f"{config.max_position} positions"
    )
  problems = (*dataset.train, *dataset.heldout[: c.eval.problems])
  size, problem = longest_prompt(tokenizer, problems, c.sample.max_prompt_tokens)
  if size > c.sample.max_prompt_tokens:
    raise UserError(
      f"sample.max_prompt_tokens={c.sample.max_prompt_tokens}: the prompt of "
      f"{problem.question[:60]!r} has {size} tokens; raise it, shorten the prompt, or drop the row"
    )


def kernels(c, mesh) -> dict[str, str | None]:
  """Implementations of attention, decode and logprob; None lets the device decide."""
  k = c.kernels
  out = {"attention": k.attention, "decode": k.decode, "logprob": k.logprob}
  for field, name in out.items():
    if name != "auto" and name not in IMPLEMENTATIONS:
      raise UserError(f"kernels.{field}={name!r}: use auto or one of {', '.join(IMPLEMENTATIONS)}")
    out[field] = None if name == "auto" else name
  if mesh.size > 1:  # the sampler leaves its split to the compiler, which splits no kernel
    if out["decode"] not in (None, "xla", "reference"):
      raise UserError(f"kernels.decode={out['decode']!r}: on several devices only xla is split")
    out["decode"] = out["decode"] or "xla"
  return out


# ---- parts ---------------------------------------------------------------------------------------


def load_data(c, tokenizer):
  dataset = data.load(c.data.to_dict(), render=tokenizer.chat)
  if len(dataset.heldout) < c.eval.problems:
    raise UserError(
      f"eval.problems={c.eval.problems}: only {len(dataset.heldout)} problems are held out; lower "
      "it or raise data.heldout"
    )
  return dataset


def make_pool(c, dataset) -> RewardPool:
  parts = [p if isinstance(p, str) else dict(p) for p in c.reward.parts] or dataset.scorer_spec
  r = c.reward
  return RewardPool(
    parts, workers=r.workers, timeout_s=r.timeout_s, memory_mb=r.memory_mb, tasks=dataset.tasks
  ).start()


def make_sampling(c, config, tokenizer, dataset, mesh) -> Sampling:
  stop = tuple(c.sample.stop) or ((dataset.stop,) if dataset.stop else ())
  prompts = [p.prompt for p in (*dataset.train, *dataset.heldout)]
  return Sampling(
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
    units=c.sample.units,
    cut=c.sample.cut,
  )


def make_show(c, run: Run):
  """problems -> their demonstrations, where the method's plan asks for them; else None."""
  if not getattr(run.method.plan, "demonstrate", False):
    return None
  sampling = dataclasses.replace(run.sampling, pack=False)  # packed later, with the samples
  spec = PromptSpec.of(c.data.get("prompt"))
  found = fixed.examples(sampling, run.data.train, spec, 1)
  return lambda problems: fixed.assemble(sampling, [found[p.id] for p in problems])


def make_gold(c, run: Run):
  """problems -> belief.Gold, where the method reads what the policy believes of the right answer.

  sample.gold is what a right last turn says, with {answer}; UserError for a problem without one.
  """
  if "answer_logp" not in run.method.needs:
    return None
  before, mark, behind = c.sample.gold.partition("{answer}")
  if not mark:
    raise UserError(f"sample.gold={c.sample.gold!r}: must say where the answer stands, {{answer}}")
  lost = next((p for p in run.data.train if p.answer is None), None)
  if lost is not None:
    raise UserError(
      f"method={c.method}: the problem {lost.question[:60]!r} has no answer to believe in"
    )
  encode = run.sampling.tokenizer.backend.encode

  def ids_of(problem):
    lead = encode(before) if before else []
    own = encode(problem.answer)
    return lead, own, (encode(behind) if behind else [])

  longest = max(sum(map(len, ids_of(p))) for p in run.data.train)

  def gold(problems) -> belief.Gold:
    tokens = np.zeros((len(problems), bucket(longest)), np.int32)
    mine = np.zeros(tokens.shape, bool)
    for row, (lead, own, rest) in enumerate(map(ids_of, problems)):
      whole = [*lead, *own, *rest]
      tokens[row, : len(whole)] = whole
      mine[row, len(lead) : len(lead) + len(own)] = True
    known: Any = (tokens, mine)
    return belief.Gold(*sharding.put(known, sharding.rows(run.mesh)))

  return gold


def make_state(params, tx, method: Method, num_prompts: int, tokens: int, mesh):
  """(state, reference) on the devices of the mesh; reference is None unless the method needs it."""
  params = sharding.put(params, sharding.param_specs(params, mesh))
  store = lambda: supply.first_store(method, num_prompts, tokens)
  init = lambda p: init_state(p, tx, method, num_prompts, store())
  specs = sharding.param_specs(jax.eval_shape(init, params), mesh)
  reference = jax.tree.map(lambda x: x.copy(), params) if "ref" in method.needs else None
  return jax.jit(init, out_shardings=specs, donate_argnums=0)(params), reference


def make_supply(method: Method, cut: Cut, forward):
  """fill(params, reference, gold, batch) -> batch, compiled; None if there is nothing to fill."""
  if not supply.fills(method, cut):
    return None

  def fill(params, reference, gold, batch):
    sources = supply.Sources(forward, params, reference, gold, in_turn=True)
    return supply.fill(method, cut, sources, batch)

  return jax.jit(fill)


def make_remember(method: Method, forward):
  """after(state without its optimizer, rollouts, batch, metrics) -> (memory, store, metrics)."""
  return jax.jit(functools.partial(supply.remember, method, forward))


def prepare(c, say=print, devices=None) -> Run:
  """Loads model and data, starts the reward processes, and puts the state on the devices.

  Nothing is compiled but the state's initialization. devices: default all of jax's.
  """
  check(c)
  mesh = sharding.make_mesh(dict(c.mesh), devices)
  _check_rows(c, mesh)
  chosen = kernels(c, mesh)
  method = make_method(c)
  cut = Cut(epochs=c.batch.epochs, mini=c.batch.mini, micro=c.batch.micro)
  tx, schedule = make_optimizer(c.optimizer, c.steps * cut.epochs * cut.mini)

  start = time.monotonic()
  config, params, tokenizer = loading.load(c.model)
  dataset = load_data(c, tokenizer)
  _check_lengths(c, config, tokenizer, dataset)
  pool = make_pool(c, dataset)
  sampling = make_sampling(c, config, tokenizer, dataset, mesh)
  say(f"model {c.model} loaded in {time.monotonic() - start:.1f} s")
  if dataset.dropped:
    say(f"{dataset.dropped} training problems left out: their prompts are held out")

  if "value" in method.needs:
    params["value"] = jax.tree.map(np.asarray, policy.init_value_head(config))
  state, reference = make_state(params, tx, method, len(dataset.train), sampling.budget, mesh)
  forward = policy.make_forward(
    config,
    temperature=c.sample.temperature,
    chunk=c.score.chunk,
    remat=c.score.remat,
    trunk=sampling.trunk,
    rows=sharding.rows(mesh),
    implementation=chosen["attention"],
    logprob=chosen["logprob"],
  )
  pool.ready()
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
    supply=make_supply(method, cut, forward),
    credit=jax.jit(functools.partial(credit_of, method), out_shardings=sharding.rows(mesh)),
    update=make_update(
      method,
      forward,
      tx,
      cut,
      learning_rate=lambda n: schedule(n * cut.epochs * cut.mini),
      shardings=jax.tree.map(lambda x: x.sharding, state),
    ),
    remember=make_remember(method, forward) if supply.remembers(method) else None,
    weigh=jax.jit(method.weigh) if method.weigh else None,
    cut=cut,
  )


# ---- between the pieces of a step ----------------------------------------------------------------


def place(parts: Run, got: Collected):
  """Rollouts and batch on the devices."""
  rollouts = sharding.put(got.rollouts, sharding.replicated(parts.mesh))
  return rollouts, sharding.put(got.batch, sharding.rows(parts.mesh))


def step_key(c, parts: Run, step: int):
  """What shuffles the batch of a step into mini-batches."""
  key = jax.random.fold_in(jax.random.key(c.seed + 1), step)
  return sharding.put(key, sharding.replicated(parts.mesh))


def after_update(parts: Run, state: TrainState, rollouts, batch, metrics):
  """(state with the method's memory brought up to date, metrics with what that found)."""
  if parts.remember is None:
    return state, metrics
  memory, store, found = parts.remember(state.replace(opt_state=()), rollouts, batch, metrics)
  return state.replace(method_state=memory, store=store), metrics | found


__all__ = [
  "Run",
  "check",
  "check_folder",
  "check_steps",
  "make_method",
  "outlook",
  "prepare",
  "save_config",
]
