"""What a passport measures of a world: its prompts, blind answers, supervised steps, GRPO."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grpo_jax import methods
from grpo_jax.envs import split
from grpo_jax.envs.world import PAD, World
from grpo_jax.errors import UserError
from grpo_jax.models import decoder, policy
from grpo_jax.rollout import play
from grpo_jax.train.programs import fused

_CANDIDATES = 64  # answers tried as the constant one
_COUNTED = 1 << 15  # problems looked through for their prompts
_STRETCH = 250  # supervised steps between two measurements
_DONE = 0.99  # of the best: nothing is left to learn


def plan_of(world: World, settings, **changes) -> fused.Sizes:
  s = settings
  plan = fused.Sizes(
    updates=s.updates,
    prompts=s.prompts,
    group=s.group,
    lr=s.lr,
    eval_every=s.updates // 2 if s.updates % 2 == 0 else s.updates,
    heldout=s.heldout,
    eval_temperature=1.0,
    warm_steps=s.warm_steps,
    warm_until=s.start,
    split="hash" if s.split == "auto" else s.split,
  )
  plan = dataclasses.replace(plan, **changes)
  try:
    plan.of(world)
  except UserError:
    if s.split != "auto":
      raise
    return dataclasses.replace(plan, split="id")
  return plan


def model_of(world: World, settings):
  return fused.tiny_config(world.vocab, settings.hidden, settings.layers)


def prompts(world: World, settings) -> dict:
  """How many prompts there are, and which share of held-out ones occurs in training."""
  plan = plan_of(world, settings)
  known = plan.of(world)
  rows = lambda p: [tuple(t[:n]) for t, n in zip(np.asarray(p.tokens), p.length, strict=True)]
  warm = jax.jit(lambda key: known.warm(key, 4096)[1])(jax.random.key(1))
  met = {*rows(known.train(jnp.arange(plan.problems))), *rows(warm)}
  shared = [prompt in met for prompt in rows(known.held())]
  hashes = split.hashes(world, plan.world_seed, _COUNTED)
  distinct = len(np.unique(hashes))
  return {
    "split": plan.split,
    "measured_on": known.label,
    "prompts": distinct,
    "at_least": distinct > _COUNTED // 2,  # more than were looked through
    "overlap": round(float(np.mean(shared)), 4),
    "vocabulary": world.vocab,
    "prompt_tokens": world.prompt,
    "answer_tokens": world.answer,
    "turns": world.turns,
  }


def blind(world: World, settings) -> dict:
  """What can be had without reading the prompt."""
  plan = plan_of(world, settings)
  known, config = plan.of(world), model_of(world, settings)
  nothing = jax.tree.map(jnp.zeros_like, decoder.init(config, jax.random.key(0)))
  random = jax.jit(fused.make_evaluate(world, config, plan))(nothing)  # all tokens equally likely

  @jax.jit
  def constant(slots):
    answers = jax.vmap(world.imitated.solution)(known.train(slots))
    other = jax.vmap(world.solution)(known.train(slots))
    answers = jnp.concatenate([answers, other])

    def reward(problems, answer):
      always = dataclasses.replace(world, solution=lambda p: _spoken(world, p, answer))
      ids = jnp.arange(problems.length.shape[0])
      return jnp.mean(play.demonstrate(always, problems, ids)[0].reward)

    some = known.train(slots[0] + jnp.arange(256) % plan.problems)
    tried = jax.lax.map(lambda answer: reward(some, answer), answers)
    return reward(known.held(), answers[jnp.argmax(tried)])

  return {
    "chance": world.chance,
    "random_reward": _round(random.reward),
    "constant_reward": _round(constant(jnp.arange(_CANDIDATES // 2))),
    "best": round(world.best, 6),
  }


def _spoken(world: World, problem, answer):
  """What an episode holds whose policy says `answer`, token by token, whatever it sees."""
  if world.step is None or world.start is None:
    return answer
  step = world.step

  def one(carry, token):
    state, now = carry
    token = jnp.where(now.force >= 0, now.force, token)
    token = jnp.where(now.done, PAD, token).astype(jnp.int32)
    return step(problem, state, token), token

  return jax.lax.scan(one, world.start(problem), answer)[1]


def supervised(world: World, settings) -> dict:
  """Held-out reward after supervised steps on solutions of training prompts."""
  config, plan = model_of(world, settings), plan_of(world, settings)
  known, forward = plan.of(world), policy.make_forward(config, chunk=0)
  stretch = min(_STRETCH, settings.steps)
  schedule = optax.cosine_decay_schedule(3e-3, settings.steps, alpha=0.03)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
  key = jax.random.key(settings.seed)

  def step(carry, index):
    params, opt_state = carry
    ids, problems = known.warm(jax.random.fold_in(key, index), 128)
    _, batch = play.demonstrate(world, problems, ids)
    loss = lambda p: -jnp.sum(batch.mask * forward(p, batch).logp) / jnp.sum(batch.mask)
    value, grad = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grad, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value

  with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
    params = decoder.init(config, jax.random.fold_in(key, 1 << 20))
    carry = params, tx.init(params)
    go = jax.jit(lambda carry, first: jax.lax.scan(step, carry, first + jnp.arange(stretch)))
    greedy = jax.jit(
      fused.make_evaluate(world, config, dataclasses.replace(plan, eval_temperature=0.0))
    )
    done, held = 0, greedy(params)
    while done < settings.steps and float(held.reward) < _DONE * world.best:
      carry, losses = go(carry, jnp.int32(done))
      done, held = done + stretch, greedy(carry[0])
  return {
    "steps": done,
    "loss": _round(losses[-1]) if done else None,
    "reward": _round(held.reward),
    "accuracy": _round(held.accuracy),
  }


def grpo(world: World, settings) -> dict:
  """A run of GRPO from a start that solves about `settings.start`."""
  config, plan = model_of(world, settings), plan_of(world, settings)
  start = jax.jit(fused.make_start(world, plan, config))
  params, warm = jax.block_until_ready(start(jnp.int32(settings.seed)))
  run = jax.jit(fused.make_run(world, methods.get("grpo"), plan, config))
  args = jnp.int32(settings.seed), jnp.float32(settings.lr), params
  compiled = run.lower(*args).compile()
  begun = time.process_time()
  _, curves = jax.block_until_ready(compiled(*args))
  seconds = time.process_time() - begun
  held, same = curves.held, curves.train["zero_variance"]
  gain = float(held.reward[-1] - held.reward[0])
  parts = {
    name: [_round(held.parts[0, i]), _round(held.parts[-1, i])]
    for i, name in enumerate(world.parts)
  }
  return {
    "warm_steps": int(warm),
    "accuracy_start": _round(held.accuracy[0]),
    "accuracy_end": _round(held.accuracy[-1]),
    "reward_start": _round(held.reward[0]),
    "reward_end": _round(held.reward[-1]),
    "slope": round(100 * gain / settings.updates, 4),  # of reward, per 100 updates
    "length": [_round(held.length[0]), _round(held.length[-1])],
    "parts": parts,
    "zero_variance": [_round(same[:5].mean()), _round(same[-5:].mean())],
    "updates_per_cpu_s": round(settings.updates / max(seconds, 1e-9), 2),
  }


def _round(value) -> float:
  return round(float(value), 4)


_GRPO_ONLY = ("start", "warm_steps", "updates", "prompts", "group", "lr")
STAGES = {"prompts": prompts, "blind": blind, "supervised": supervised, "grpo": grpo}


def fixed_by(stage: str, settings: dict) -> dict:
  """The settings that decide a stage's numbers."""
  return settings if stage == "grpo" else {k: settings[k] for k in settings.keys() - _GRPO_ONLY}
