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
from jaxtyping import Array, Float, Int

from grpo_jax.envs.split import SPLITS, Split, split_of
from grpo_jax.envs.world import World
from grpo_jax.errors import UserError
from grpo_jax.models import decoder, policy
from grpo_jax.models.config import ModelConfig
from grpo_jax.names import unknown
from grpo_jax.rollout import belief, choose, plans, play
from grpo_jax.train import supply
from grpo_jax.train.programs.draw import choose_problems, idle
from grpo_jax.train.update import Cut, credit_of, init_state, make_update
from grpo_jax.types import Method, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class Sizes:
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
        raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
    if self.updates % self.eval_every:
      raise UserError(f"updates={self.updates}: must be a multiple of eval_every={self.eval_every}")
    if not self.prompts <= self.problems < 1 << 28:
      raise UserError(f"problems={self.problems}: must be at least prompts={self.prompts}")
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


class Pieces(NamedTuple):
  """A run in parts, for a loop on the host whose runs of any length share their programs, and whose
  methods share the evaluation."""

  begin: Callable[..., tuple[TrainState, Any, Array]]
  stretch: Callable[..., tuple[TrainState, Metrics]]
  evaluate: Callable[[Any], Held]


def make_run(
  world: World, method: Method, sizes: Sizes = Sizes(), config: ModelConfig | None = None
) -> Callable[..., tuple[TrainState, Curves]]:
  """run(seed i32[], lr f32[] = sizes.lr, params = None) -> (state, curves): pure, so jit it, or
  hand it to `seeds.over_seeds`. `params`: start from these, without a warm start.

  Raises UserError for a method that needs what this loop does not supply.
  """
  pieces = make_pieces(world, method, sizes, config)

  def run(seed, lr=sizes.lr, params=None):
    state, reference, warm = pieces.begin(seed, params)
    before = pieces.evaluate(state.params)

    def stretch(state, index):
      state, metrics = pieces.stretch(state, reference, seed, lr, index)
      return state, (metrics, pieces.evaluate(state.params))

    stretches = jnp.arange(sizes.updates // sizes.eval_every)
    state, (metrics, after) = jax.lax.scan(stretch, state, stretches)
    held = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), before, after)
    flat = jax.tree.map(lambda x: x.reshape(sizes.updates), metrics)
    return state, Curves(flat, held.accuracy, held.reward, warm, held)

  return run


def make_pieces(
  world: World, method: Method, sizes: Sizes = Sizes(), config: ModelConfig | None = None
) -> Pieces:
  """begin(seed, params = None) -> (state, reference, warm steps);
  stretch(state, reference, seed, lr, index) -> (state, metrics f32[eval_every]): the index-th
  `eval_every` updates; evaluate(params) -> Held, the same whatever the method. Nothing in them
  depends on `sizes.updates`."""
  config = config or tiny_config(world.vocab)
  check(world, method)
  forward = policy.make_forward(config, chunk=0)
  cut = Cut(epochs=sizes.epochs, mini=sizes.mini, micro=sizes.micro)
  start = make_start(world, sizes, config)

  def optimizer(lr):
    return optax.chain(
      optax.clip_by_global_norm(sizes.clip_norm),
      optax.scale_by_adam(),
      optax.scale_by_learning_rate(lr),
    )

  def begin(seed, params=None):
    warm = jnp.int32(0)
    if params is None:
      params, warm = start(seed)
    if "value" in method.needs:
      params = dict(params, value=policy.init_value_head(config))  # pyright: ignore
    reference = params if "ref" in method.needs else None
    store = supply.first_store(method, sizes.problems, world.answer)
    state = init_state(params, optimizer(sizes.lr), method, sizes.problems, store)
    return state, reference, warm

  def stretch(state, reference, seed, lr, index):
    update = make_update(method, forward, optimizer(lr), cut)
    iterate = make_iteration(world, config, method, sizes, forward, update, cut)
    key = jax.random.fold_in(jax.random.key(0), seed)
    steps = index * sizes.eval_every + jnp.arange(sizes.eval_every)
    one = lambda s, keys: iterate(s, reference, keys)
    return jax.lax.scan(one, state, _keys(key, steps))

  return Pieces(begin, stretch, make_evaluate(world, config, sizes))


def make_start(world: World, sizes: Sizes, config: ModelConfig | None = None):
  """start(seed) -> (params after the warm start, steps it took), as `run` of that seed has them."""
  config = config or tiny_config(world.vocab)
  forward = policy.make_forward(config, chunk=0)

  def start(seed):
    key = jax.random.fold_in(jax.random.key(0), seed)
    params = decoder.init(config, jax.random.fold_in(key, 0))
    return warm_start(world, config, sizes, forward, params, jax.random.fold_in(key, 1))

  return start


def _keys(key: Array, steps: Int[Array, " S"]) -> Array:
  """Keys [S, 3]: of the problems, the samples and the mini-batches of every step. Made together,
  since a generator inside the loop over steps costs a small model as much as a layer."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return jax.vmap(fold, in_axes=(0, None))(fold(key, steps + 2), jnp.arange(3))


def check(world: World, method: Method) -> None:
  """Raises UserError where this loop cannot give the method what it reads."""
  turns = world.step is not None
  plans.check(method.plan, plans.Where("fused", f"world {world.name}", world.answer, turns))
  given = {*plans.of(method.plan).SUPPLIES} | ({"unit_reward"} if turns else set())
  lacks = {} if world.gold else {"answer_logp": f"world {world.name} has no `gold`"}
  supply.check(method, "fused", given, lacks)


def make_iteration(world, config, method, sizes, forward, update, cut):
  """iterate(state, reference, keys [3]) -> (state, metrics): one step of reinforcement learning."""
  sampling, play_plan = method.plan, plans.of(method.plan).play
  drawn = sampling.prompts(sizes.prompts)
  known = sizes.of(world)

  def iterate(state: TrainState, reference: Any, keys: Array):
    pick, draw, shuffle = keys

    # sample, verify
    weights = None if method.weigh is None else method.weigh(state.method_state)
    ids = choose_problems(pick, sizes.problems, drawn, weights)
    problems = known.train(ids)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(draw, ids)
    game = plans.Game(
      world, config, state.params, problems, ids, keys, sizes.group, sizes.prompts, known.train
    )
    rollouts, batch, problems, watched = play_plan(sampling, game)

    # score: what the method reads beside
    gold = belief.gold_of(world, problems) if "answer_logp" in method.needs else None
    sources = supply.Sources(forward, state.params, reference, gold)
    batch = supply.fill(method, cut, sources, batch)

    # credit, update, remember
    credit = credit_of(method, state.method_state, state.step, rollouts, batch)
    state, metrics, tokens = update(state, rollouts, batch, credit, shuffle)
    memory, store, late = supply.remember(method, forward, state, rollouts, batch, metrics)
    state = state.replace(method_state=memory, store=store)
    return state, metrics | watched | late | {"idle": idle(tokens["adv"], batch)}

  return iterate


def make_evaluate(world: World, config: ModelConfig, sizes: Sizes):
  """evaluate(params) -> Held, one rollout for each held-out problem, drawn with the same random
  numbers every time."""
  choice = choose.Choice(temperature=sizes.eval_temperature)
  known = sizes.of(world)

  def evaluate(params) -> Held:
    problems, ids = known.held(), jnp.arange(sizes.heldout)
    keys = jax.random.split(jax.random.key(0), sizes.heldout)
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


def warm_start(world, config, sizes, forward, params, key, every: int = 10):
  """(params, steps): supervised steps on solutions of fresh problems (or what the world imitates at
  the start), until the sampled success rate, measured every ten steps on 64 problems that are not
  held out, reaches `warm_until`."""
  if not sizes.warm_steps:
    return params, jnp.int32(0)
  tx = optax.adamw(sizes.warm_lr, weight_decay=0.0)
  known = sizes.of(world)

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
    return (index < sizes.warm_steps) & (rate < sizes.warm_until)

  def stretch(loop):
    carry, index, _ = loop
    carry, _ = jax.lax.scan(step, carry, index + jnp.arange(every))
    return carry, index + every, success(carry[0], index)

  with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
    begin = ((params, tx.init(params)), jnp.int32(0), jnp.float32(0))
    (params, _), steps, _ = jax.lax.while_loop(more, stretch, begin)
  return params, steps
