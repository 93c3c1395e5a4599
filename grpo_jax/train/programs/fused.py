"""The loop whose rewards are JAX: a whole RL run on a token world in one compiled program.

`make_run` returns run(seed, lr) -> (TrainState, Curves): warm start, sampling, verdicts, credit,
update and curriculum in nested scans, the same `Method` files and the same update as the
language-model loop. Nothing leaves the device before the end.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from grpo_jax.envs.split import SPLITS, Split, split_of
from grpo_jax.envs.world import World
from grpo_jax.models import decoder, policy
from grpo_jax.models.config import ModelConfig
from grpo_jax.names import unknown
from grpo_jax.rollout import belief, choose, play
from grpo_jax.train.programs import drift
from grpo_jax.train.programs.draw import check, choose_problems, idle, keep_informative, make_draw
from grpo_jax.train.update import Cut, init_state, make_update, wants_old, with_old
from grpo_jax.types import Flat, Method, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class Plan:
  """Sizes of a run. Held-out prompts are met neither by RL nor by the warm start (split="hash")."""

  updates: int = 200
  prompts: int = 32
  group: int = 8
  problems: int = 4096  # training problems: slots 0 .. problems - 1
  split: str = "hash"  # what is held out: "hash" of the prompt's tokens, or "id", see envs/split.py
  lr: float = 1e-3  # where `run` gets none
  clip_norm: float = 1.0
  epochs: int = 1
  mini: int = 1
  micro: int = 1
  eval_every: int = 50  # a divisor of `updates`
  heldout: int = 256
  eval_temperature: float = 0.0  # 0: greedy; 1: what training maximizes
  warm_steps: int = 0  # at most so many supervised steps on solutions
  warm_until: float = 1.0  # stop the warm start at this sampled success rate
  warm_lr: float = 3e-3
  world_seed: int = 0  # which problems there are; the same for all seeds of a comparison

  def __post_init__(self):
    for name in ("updates", "prompts", "group", "eval_every", "heldout"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
    if self.updates % self.eval_every:
      raise ValueError(
        f"updates={self.updates}: must be a multiple of eval_every={self.eval_every}"
      )
    if not self.prompts <= self.problems < 1 << 28:
      raise ValueError(f"problems={self.problems}: must be at least prompts={self.prompts}")
    if self.split not in SPLITS:
      raise unknown("split", self.split, SPLITS)

  def of(self, world: World) -> Split:
    """Which of the world's problems are trained on, and which are held out."""
    return split_of(world, self.world_seed, self.split, self.problems, self.heldout)


class Held(NamedTuple):
  """Means over the held-out problems, one rollout of each."""

  accuracy: Array
  reward: Array
  length: Array
  parts: Float[Array, " C"]  # by the names in World.parts
  turns: Float[Array, " U"]  # turn rewards; none in worlds without


class Curves(NamedTuple):
  """What a run leaves beside its state."""

  train: Metrics  # f32[updates] each
  accuracy: Float[Array, " evals"]  # on held-out problems; the first before any update
  reward: Float[Array, " evals"]  # mean reward there
  warm_steps: Int[Array, ""]  # supervised steps that the warm start took
  held: Held  # all that was measured there, [evals, ...]


def tiny_config(vocab: int, hidden: int = 64, layers: int = 2, heads: int = 4) -> ModelConfig:
  """The transformer of the arena: 0.1M parameters at a vocabulary of 64."""
  return ModelConfig(
    vocab_size=vocab,
    hidden_size=hidden,
    intermediate_size=2 * hidden,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=hidden // heads,
  )


def make_run(
  world: World, method: Method, plan: Plan = Plan(), config: ModelConfig | None = None
) -> Callable[..., tuple[TrainState, Curves]]:
  """run(seed i32[], lr f32[] = plan.lr, params = None) -> (state, curves): pure, so jit it, or
  hand it to `over_seeds`. `params`: start from these, without a warm start.

  Raises UserError for a method that needs what this loop does not supply.
  """
  config = config or tiny_config(world.vocab)
  check(world, method)
  forward = policy.make_forward(config, chunk=0)
  cut = Cut(epochs=plan.epochs, mini=plan.mini, micro=plan.micro)
  inner = drift.with_past(method, world.answer) if "drift" in method.needs else method
  evaluate = make_evaluate(world, config, plan)
  start = make_start(world, plan, config)

  def run(seed, lr=plan.lr, params=None):
    tx = optax.chain(
      optax.clip_by_global_norm(plan.clip_norm),
      optax.scale_by_adam(),
      optax.scale_by_learning_rate(lr),
    )
    update = make_update(inner, forward, tx, cut)
    iterate = make_iteration(world, config, method, plan, forward, update, cut)
    key = jax.random.fold_in(jax.random.key(0), seed)
    warm = jnp.int32(0)
    if params is None:
      params, warm = start(seed)
    if "value" in method.needs:
      params = dict(params, value=policy.init_value_head(config))  # pyright: ignore
    reference = params if "ref" in method.needs else None
    state = init_state(params, tx, inner, plan.problems)
    before = evaluate(params)

    def stretch(state, index):
      steps = index * plan.eval_every + jnp.arange(plan.eval_every)
      one = lambda s, keys: iterate(s, reference, keys)
      state, metrics = jax.lax.scan(one, state, _keys(key, steps))
      return state, (metrics, evaluate(state.params))

    stretches = jnp.arange(plan.updates // plan.eval_every)
    state, (metrics, after) = jax.lax.scan(stretch, state, stretches)
    held = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), before, after)
    flat = jax.tree.map(lambda x: x.reshape(plan.updates), metrics)
    return state, Curves(flat, held.accuracy, held.reward, warm, held)

  return run


def make_start(world: World, plan: Plan, config: ModelConfig | None = None):
  """start(seed) -> (params after the warm start, steps it took), as `run` of that seed has them."""
  config = config or tiny_config(world.vocab)
  forward = policy.make_forward(config, chunk=0)

  def start(seed):
    key = jax.random.fold_in(jax.random.key(0), seed)
    params = decoder.init(config, jax.random.fold_in(key, 0))
    return warm_start(world, config, plan, forward, params, jax.random.fold_in(key, 1))

  return start


def _keys(key: Array, steps: Int[Array, " S"]) -> Array:
  """Keys [S, 3]: of the problems, the samples and the mini-batches of every step. Made together,
  since a generator inside the loop over steps costs a small model as much as a layer."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return jax.vmap(fold, in_axes=(0, None))(fold(key, steps + 2), jnp.arange(3))


def make_iteration(world, config, method, plan, forward, update, cut):
  """iterate(state, reference, keys [3]) -> (state, metrics): one step of reinforcement learning."""
  sampling = method.plan
  rounds = 1 + sampling.resample if isinstance(sampling, Flat) else 1
  demonstrate = isinstance(sampling, Flat) and sampling.demonstrate
  sample = make_draw(world, config, sampling, plan.group)
  late = "drift" in method.needs  # then the state holds completions beside the method's own
  known = plan.of(world)

  def iterate(state: TrainState, reference: Any, keys: Array):
    pick, draw, shuffle = keys

    # sample, verify
    memory = state.method_state[0] if late else state.method_state
    weights = None if method.weigh is None else method.weigh(memory)
    ids = choose_problems(pick, plan.problems, plan.prompts * rounds, weights)
    problems = known.train(ids)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(draw, ids)
    rollouts, batch, watched = sample(state.params, problems, ids, keys)
    if rounds > 1:
      rollouts, batch = keep_informative(rollouts, batch, plan.prompts)
      problems = known.train(rollouts.prompt)
    if demonstrate:
      rollouts, batch = play.with_demonstrations(world, problems, rollouts, batch)

    # score
    if wants_old(method, cut):
      batch = with_old(batch, forward(state.params, batch))
    if reference is not None:
      batch = batch.replace(logp_ref=forward(reference, batch).logp)
    if "answer_logp" in method.needs:
      answer = belief.answer_logp(world, forward, state.params, problems, batch)
      batch = batch.replace(extra={**batch.extra, "answer_logp": answer})

    # credit, update, remember
    state, metrics, tokens = update(state, rollouts, batch, shuffle)
    if late:
      state, moved = drift.remember(method, forward, state, rollouts, batch, metrics)
      watched["drift"] = jnp.mean(moved)
    return state, metrics | watched | {"idle": idle(tokens["adv"], batch)}

  return iterate


def make_evaluate(world: World, config: ModelConfig, plan: Plan):
  """evaluate(params) -> Held, one rollout for each held-out problem, drawn with the same random
  numbers every time."""
  choice = choose.Choice(temperature=plan.eval_temperature)
  known = plan.of(world)

  def evaluate(params) -> Held:
    problems, ids = known.held(), jnp.arange(plan.heldout)
    keys = jax.random.split(jax.random.key(0), plan.heldout)
    rollouts, batch = play.play(world, config, params, problems, ids, keys, group=1, choice=choice)
    none = jnp.zeros((0,), jnp.float32)
    return Held(
      accuracy=jnp.mean(rollouts.correct.astype(jnp.float32)),
      reward=jnp.mean(rollouts.reward),
      length=jnp.mean(rollouts.length.astype(jnp.float32)),
      parts=none if rollouts.parts is None else jnp.mean(rollouts.parts, axis=(0, 1)),
      turns=none if batch.unit_reward is None else jnp.mean(batch.unit_reward, axis=0),
    )

  return evaluate


def warm_start(world, config, plan, forward, params, key, every: int = 10):
  """(params, steps): supervised steps on solutions of fresh problems (or what the world imitates at
  the start), until the sampled success rate, measured every ten steps on 64 problems that are not
  held out, reaches `warm_until`."""
  if not plan.warm_steps:
    return params, jnp.int32(0)
  tx = optax.adamw(plan.warm_lr, weight_decay=0.0)
  known = plan.of(world)

  def step(carry, index):
    params, opt_state = carry
    ids, problems = known.warm(jax.random.fold_in(key, index), 128)
    _, batch = play.demonstrate(world.imitated, problems, ids)

    def loss(params):
      return -jnp.sum(batch.mask * forward(params, batch).logp) / jnp.sum(batch.mask)

    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  def success(params, index):
    keys = jax.random.split(jax.random.fold_in(key, index), 64)
    problems, ids = known.probe(64), jnp.arange(64)
    rollouts, _ = play.play(world, config, params, problems, ids, keys, group=8)
    return jnp.mean(rollouts.correct.astype(jnp.float32))

  def more(loop):
    _, index, rate = loop
    return (index < plan.warm_steps) & (rate < plan.warm_until)

  def stretch(loop):
    carry, index, _ = loop
    carry, _ = jax.lax.scan(step, carry, index + jnp.arange(every))
    return carry, index + every, success(carry[0], index)

  with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
    begin = ((params, tx.init(params)), jnp.int32(0), jnp.float32(0))
    (params, _), steps, _ = jax.lax.while_loop(more, stretch, begin)
  return params, steps


def over_seeds(run, devices=None):
  """many(seeds i32[S], lrs f32[S], ...) -> (states, curves), as `run` takes and gives them with a
  leading S: all runs in one program.

  The runs are split over as many of the devices as divide S. On one device they follow each other
  on the CPU, whose batched products are slow and round differently, and are vmapped elsewhere.
  """
  devices = jax.devices() if devices is None else devices

  def many(*each):
    count = each[0].shape[0]
    used = max(d for d in range(1, len(devices) + 1) if count % d == 0)
    mesh = Mesh(devices[:used], ("run",), axis_types=(AxisType.Auto,))
    one_by_one = devices[0].platform == "cpu"
    in_turn = lambda *each: jax.lax.map(lambda one: run(*one), each)
    go = in_turn if one_by_one else jax.vmap(run)
    return jax.shard_map(go, mesh=mesh, in_specs=P("run"), out_specs=P("run"), check_vma=False)(
      *each
    )

  return jax.jit(many)
