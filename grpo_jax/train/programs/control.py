"""Whole runs on gymnax environments in one compiled program: collect, score, credit, update.

`make_run` returns run(seed, lr) -> (TrainState, Curves), as train/programs/fused.py does for token
worlds, with the same `Method` records and the same update. How an update's steps become a batch:

  row       T consecutive steps of one environment; tokens are its actions (R = N environments)
  unit      one step, with its reward (U = T)
  rollout   what the row holds of an episode: the j-th is rollout (row, j), G = T places for them

So a method that credits rollouts sees the part of an episode that lies in the row, and one that
credits steps (ppo with rewards="unit", bootstrap=True) reads in extra["bootstrap"] the value
where a part ends and the episode does not: at a time limit and at the end of the row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from grpo_jax.envs.control import Control
from grpo_jax.errors import UserError
from grpo_jax.models import mlp
from grpo_jax.models.mlp import MLPConfig
from grpo_jax.rollout import plans
from grpo_jax.train import supply
from grpo_jax.train.update import Cut, credit_of, init_state, make_update
from grpo_jax.types import Batch, Method, Metrics, Rollouts, TrainState


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a run: updates * envs * steps actions in all."""

  updates: int = 976
  envs: int = 16  # R
  steps: int = 32  # T, of each environment between two updates
  epochs: int = 4
  mini: int = 2  # a divisor of envs
  lr: float = 5e-4  # where `run` gets none
  anneal: bool = True  # the learning rate falls linearly to 0
  clip_norm: float = 0.5
  eval_every: int = 0  # updates, a divisor of theirs; 0: before and after the run only
  eval_episodes: int = 16  # played greedily

  def __post_init__(self):
    for name in ("updates", "envs", "steps", "epochs", "mini", "eval_episodes"):
      if getattr(self, name) < 1:
        raise UserError(f"plan.{name}={getattr(self, name)}: must be at least 1")
    if self.updates % self.every:
      raise UserError(f"plan.eval_every={self.eval_every}: must divide updates={self.updates}")
    if self.envs % self.mini:
      raise UserError(f"plan.mini={self.mini}: must divide envs={self.envs}")

  @property
  def every(self) -> int:
    return self.eval_every or self.updates


class Live(NamedTuple):
  """Environments between two updates: R of each."""

  state: Any
  observation: Float[Array, "R O"]
  total: Float[Array, " R"]  # return of the episode so far
  last: Float[Array, " R"]  # return of the last episode that ended, 0 before there was one


class Steps(NamedTuple):
  """What was collected, [R, T, ...]."""

  observation: Float[Array, "R T O"]
  action: Array  # i32[R, T] or f32[R, T, A]
  reward: Float[Array, "R T"]
  terminated: Bool[Array, "R T"]
  truncated: Bool[Array, "R T"]
  final: Float[Array, "R T O"]


class Curves(NamedTuple):
  """What a run leaves beside its state."""

  train: Metrics  # f32[updates] each; "return": mean over environments of their last episodes'
  reward: Float[Array, " evals"]  # mean return of greedy episodes; the first before any update


def make_run(
  env: Control, method: Method, sizes: Sizes = Sizes(), config: MLPConfig | None = None
) -> Callable[..., tuple[TrainState, Curves]]:
  """run(seed i32[], lr f32[] = sizes.lr) -> (state, curves): pure, so jit it, or hand it to
  `seeds.over_seeds`.

  Raises UserError for a method that needs what this loop does not supply.
  """
  config = config or MLPConfig(env.observation, env.actions, env.continuous)
  check(env, method)
  forward = mlp.make_forward(config)
  cut = Cut(epochs=sizes.epochs, mini=sizes.mini)
  collect = make_collect(env, config, sizes)
  evaluate = make_evaluate(env, config, sizes)

  def run(seed, lr=sizes.lr):
    tx = optimizer(sizes, lr)
    update = make_update(method, forward, tx, cut)
    key = jax.random.fold_in(jax.random.key(0), seed)
    state = init_state(mlp.init(config, jax.random.fold_in(key, 0)), tx, method, sizes.envs)

    def iterate(carry, index):
      state, live = carry
      draw, shuffle = jax.random.split(jax.random.fold_in(key, index + 2))
      live, steps = collect(state.params, live, draw)
      rollouts, batch = assemble(config, state.params, steps)
      batch = supply.fill(method, cut, supply.Sources(forward, state.params), batch)
      credit = credit_of(method, state.method_state, state.step, rollouts, batch)
      state, metrics, _ = update(state, rollouts, batch, credit, shuffle)
      memory, _, _ = supply.remember(method, forward, state, rollouts, batch, metrics)
      state = state.replace(method_state=memory)
      ended = jnp.sum(steps.terminated | steps.truncated, dtype=jnp.float32)
      return (state, live), metrics | {"return": jnp.mean(live.last), "episodes": ended}

    def stretch(carry, index):
      carry, metrics = jax.lax.scan(iterate, carry, index * sizes.every + jnp.arange(sizes.every))
      return carry, (metrics, evaluate(carry[0].params))

    before = evaluate(state.params)
    carry = (state, begin(env, sizes.envs, jax.random.fold_in(key, 1)))
    stretches = jnp.arange(sizes.updates // sizes.every)
    (state, _), (metrics, after) = jax.lax.scan(stretch, carry, stretches)
    flat = jax.tree.map(lambda x: x.reshape(sizes.updates), metrics)
    return state, Curves(flat, jnp.concatenate([before[None], after]))

  return run


def check(env: Control, method: Method) -> None:
  """Raises UserError where this loop cannot give the method what it reads."""
  plans.check(method.plan, plans.Where("control", f"env {env.name}", budget=1))
  if method.weigh is not None:
    raise UserError(f"env {env.name}: the method chooses what is sampled, which control cannot do")
  supply.check(method, "control", given={"unit_reward"})


def optimizer(sizes: Sizes, lr) -> optax.GradientTransformation:
  """Adam (eps 1e-5) on clipped gradients; an annealed rate is constant within an update."""

  def rate(count):
    done = count // (sizes.epochs * sizes.mini) / sizes.updates
    return -lr * (1 - done) if sizes.anneal else -lr

  chain = optax.chain(
    optax.clip_by_global_norm(sizes.clip_norm),
    optax.scale_by_adam(eps=1e-5),
    optax.scale_by_schedule(rate),
  )
  return optax.flatten(chain)  # one vector: a dozen small arrays cost more to visit than to add


def begin(env: Control, envs: int, key: Array) -> Live:
  state, observation = jax.vmap(env.start)(jax.random.split(key, envs))
  return Live(state, observation, jnp.zeros((envs,)), jnp.zeros((envs,)))


def make_collect(env: Control, config: MLPConfig, sizes: Sizes):
  """collect(params, live, key) -> (live, Steps): sizes.steps actions in every environment."""
  shape = (sizes.steps, sizes.envs)

  def collect(params, live: Live, key: Array) -> tuple[Live, Steps]:
    def act(live: Live, drawn):
      noise, keys, fresh = drawn
      action = mlp.choose_action(config, params, live.observation, noise)
      now = jax.vmap(env.step)(live.state, action, keys, fresh)
      total = live.total + now.reward
      ended = now.terminated | now.truncated
      after = Live(
        state=now.state,
        observation=now.observation,
        total=jnp.where(ended, 0, total),
        last=jnp.where(ended, total, live.last),
      )
      seen = (live.observation, action, now.reward, now.terminated, now.truncated, now.final)
      return after, Steps(*seen)

    to_act, to_step, to_start = jax.random.split(key, 3)
    fresh = jax.vmap(jax.vmap(env.start))(jax.random.split(to_start, shape))
    drawn = mlp.noise(config, to_act, shape), jax.random.split(to_step, shape), fresh
    live, steps = jax.lax.scan(act, live, drawn)
    return live, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)

  return collect


def assemble(config: MLPConfig, params, steps: Steps) -> tuple[Rollouts, Batch]:
  """Rollouts [R, T] and the batch; `params` value what follows where an episode is cut."""
  rows, width = steps.reward.shape
  column = jnp.arange(width, dtype=jnp.int32)[None, :]
  ended = (steps.terminated | steps.truncated).astype(jnp.int32)
  episode = jnp.cumsum(ended, axis=1) - ended  # of the row, from 0
  within = episode[:, :, None] == column[:, None, :]
  total = lambda x: jnp.sum(jnp.where(within, x[:, :, None], 0), axis=1)
  rollouts = Rollouts(
    prompt=jnp.arange(rows, dtype=jnp.int32),
    reward=total(steps.reward),
    alive=column <= episode[:, -1:],
    correct=jnp.zeros((rows, width), bool),  # nobody judges an episode but by its reward
    truncated=total(steps.terminated.astype(jnp.int32)) == 0,
    length=total(jnp.ones_like(ended)),
  )
  cut = ~steps.terminated & (steps.truncated | (column == width - 1))
  extra = {
    "observation": steps.observation,
    "bootstrap": jnp.where(cut, _follows(config, params, steps), 0),
  }
  if config.continuous:
    extra["action"] = steps.action
  batch = Batch(
    tokens=jnp.zeros_like(ended) if config.continuous else steps.action,
    mask=jnp.ones_like(steps.reward),
    unit=jnp.broadcast_to(column, (rows, width)),
    unit_mask=jnp.ones_like(steps.reward),
    owner=jnp.arange(rows, dtype=jnp.int32)[:, None] * width + episode,
    unit_reward=steps.reward,
    extra=extra,
  )
  return rollouts, batch


def _follows(config: MLPConfig, params, steps: Steps) -> Float[Array, "R T"]:
  """Values of `final` where they may be read: only at the row's end, unless a time limit fell."""
  everywhere = lambda: mlp.value(config, params, steps.final)
  at_end = lambda: jnp.broadcast_to(
    mlp.value(config, params, steps.final[:, -1:]), steps.reward.shape
  )
  return jax.lax.cond(jnp.any(steps.truncated), everywhere, at_end)


def make_evaluate(env: Control, config: MLPConfig, sizes: Sizes):
  """evaluate(params) -> mean return of whole greedy episodes, the same starts every time."""
  envs = sizes.eval_episodes

  def evaluate(params):
    def act(carry, key):
      state, observation, total, playing = carry
      still = jnp.zeros((envs, config.actions))
      action = mlp.choose_action(config, params, observation, still)
      now = jax.vmap(env.step)(state, action, jax.random.split(key, envs))
      total = total + jnp.where(playing, now.reward, 0)
      playing = playing & ~(now.terminated | now.truncated)
      return (now.state, now.observation, total, playing), None

    live = begin(env, envs, jax.random.key(1))
    start = (live.state, live.observation, live.total, jnp.ones((envs,), bool))
    keys = jax.random.split(jax.random.key(2), env.horizon)
    (_, _, total, _), _ = jax.lax.scan(act, start, keys)
    return jnp.mean(total)

  return evaluate
