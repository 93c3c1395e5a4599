"""In-context learners: a whole pretraining run, tasks and contexts made on the fly, as one program.

`make_program` gives the pieces, pure functions that a loop on the host calls (in_context_loop.py);
`make_run` joins them to run(seed, lr) -> (TrainState, Curves) for comparisons over seeds. Methods
and the update are those of the language-model loops: a row is a context, a column a token, and
`Batch.tokens` is the label there.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from grpo_jax.core.contrastive import info_nce
from grpo_jax.errors import UserError
from grpo_jax.models.in_context import transformer as model
from grpo_jax.rollout.in_context.tokens import Layout
from grpo_jax.train.optimizer import make_schedule
from grpo_jax.train.programs import in_context_exam as exams
from grpo_jax.train.programs.in_context_data import draw
from grpo_jax.train.update import credit_of, init_state, make_update
from grpo_jax.types import Batch, Fixed, Fwd, Method, Metrics, TrainState


class _Schedule(NamedTuple):
  schedule: str
  warmup: int
  lr: float = 1.0


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a run. UserError for values out of range."""

  steps: int = 1000
  batch: int = 64
  lr: float = 1e-3  # where `run` gets none
  schedule: str = "constant"  # or linear, cosine; to 0 at `steps`
  warmup: int = 0
  weight_decay: float = 1e-4
  clip_norm: float = 1.0  # 0: none
  b1: float = 0.9
  b2: float = 0.999
  wide: bool = False  # begin with larger weights than GPT-2's, see `widened`
  pairs: bool = False  # two contexts of every task, of different tasks: rows i and i + batch / 2
  every: int = 100  # steps in one call of `stretch`; a divisor of `steps`
  exam: exams.Size = dataclasses.field(default_factory=exams.Size)

  def __post_init__(self):
    for name in ("steps", "batch", "every"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
    if self.steps % self.every:
      raise UserError(f"steps={self.steps}: must be a multiple of {self.every}, the log interval")
    make_schedule(_Schedule(self.schedule, self.warmup), self.steps)
    if self.pairs and self.batch % 2:
      raise UserError(f"batch={self.batch}: must be even where contexts come in pairs")


class Program(NamedTuple):
  init: Callable[..., TrainState]  # seed -> state
  stretch: Callable[..., tuple[TrainState, Metrics]]  # seed, state, lr -> `every` steps; means
  evaluate: Callable[..., dict[str, Array]]  # params, exam -> per task
  exam: Callable[[], exams.Exam]  # the same for all seeds


class Curves(NamedTuple):
  """What a run leaves beside its state."""

  train: Metrics  # f32[steps / every] each
  marks: dict[str, Array]  # of the exam after the last step


def make_config(layout: Layout, *, hidden=32, layers=4, heads=1, **more) -> model.InContextConfig:
  """The model for these tokens."""
  return model.InContextConfig(
    inputs=layout.width,
    outputs=layout.family.actions,
    positions=int(layout.position.max()) + 1,
    modalities=layout.modalities,
    lead=layout.lead,
    hidden=hidden,
    layers=layers,
    heads=heads,
    **more,
  )


def check(method: Method) -> None:
  """Raises UserError where this loop cannot give the method what it reads."""
  if method.plan != Fixed():
    raise UserError("the method must learn from given labels, one a context, as sft does")
  if method.needs or method.remember is not Method.remember:
    what = ", ".join(method.needs) or "a memory"
    raise UserError(f"the method needs {what}, which the in-context loop does not supply")


def make_program(layout: Layout, method: Method, config, plan: Sizes, source=None) -> Program:
  """source: where contexts come from if not from the family; see in_context_data.draw."""
  check(method)

  def optimizer(lr):
    c = plan
    unit = make_schedule(_Schedule(c.schedule, c.warmup), c.steps)
    parts = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
    return optax.chain(
      *parts,
      optax.scale_by_adam(b1=c.b1, b2=c.b2),
      optax.add_decayed_weights(c.weight_decay),
      optax.scale_by_learning_rate(lambda count: lr * unit(count)),
    )

  def key_of(seed):
    return jax.random.fold_in(jax.random.key(0), seed)

  def init(seed):
    params = model.init(config, jax.random.fold_in(key_of(seed), 0))
    params = widened(params) if plan.wide else params
    return init_state(params, optimizer(plan.lr), method, 1)

  def step(seed, state: TrainState, lr):
    key = jax.random.fold_in(key_of(seed), state.step + 1)
    data, noise, order = (jax.random.fold_in(key, i) for i in range(3))
    rollouts, batch = draw(layout, data, plan.batch, pairs=plan.pairs, source=source)
    forward = make_forward(layout, config, noise, plan.pairs)
    update = make_update(method, forward, optimizer(lr))
    credit = credit_of(method, state.method_state, state.step, rollouts, batch)
    state, metrics, per_token = update(state, rollouts, batch, credit, order)
    return state, metrics | {"nll": -jnp.sum(batch.mask * per_token["logp"]) / jnp.sum(batch.mask)}

  def stretch(seed, state, lr=plan.lr):
    one = lambda state, _: step(seed, state, lr)
    state, metrics = jax.lax.scan(one, state, None, length=plan.every)
    return state, {k: jnp.mean(v) for k, v in metrics.items()}

  return Program(
    init=init,
    stretch=stretch,
    evaluate=lambda params, exam: exams.evaluate(layout, config, params, exam, plan.exam),
    exam=lambda: exams.make(layout, plan.exam),
  )


def widened(params):
  """Larger weights at the start: the matrices of attention and dense layers 8 times (from GPT-2's
  0.02 to about 1 / sqrt(width) at a width of 32 to 64), the embedding 4 times.

  Ours, by trial on 5-armed bandits: with four heads it is past the plateau of 1.3 nats a label
  within 300 steps of 64 contexts; one head as in DPT's code, of either start, was not within 600.
  """
  factor = {"qkv": 8.0, "proj": 8.0, "up": 8.0, "down": 8.0}
  grow = lambda layer: {k: x * factor[k] if k in factor else x for k, x in layer.items()}
  matrix = lambda path, x: 4.0 * x if path[-1].key in ("w", "w2") else x
  return params | {
    "embed": jax.tree_util.tree_map_with_path(matrix, params["embed"]),
    "layers": {name: grow(layer) for name, layer in params["layers"].items()},
  }


def make_run(layout: Layout, method: Method, config, plan: Sizes = Sizes(), source=None):
  """run(seed i32[], lr f32[] = plan.lr) -> (state, curves): pure, for jit or `seeds.over_seeds`."""
  program = make_program(layout, method, config, plan, source)

  def run(seed, lr=plan.lr):
    one = lambda state, _: program.stretch(seed, state, lr)
    state, train = jax.lax.scan(one, program.init(seed), None, length=plan.steps // plan.every)
    return state, Curves(train, program.evaluate(state.params, program.exam()))

  return run


def make_forward(layout: Layout, config, key: Array | None, pairs: bool = False):
  """forward(params, batch) -> Fwd: what the model says of the labels at every token.

  key: of the gates' noise in training; None: none. pairs: rows i and i + B/2 are of one task, so
  that there is a contrastive loss, summed over layers with task experts. Continuous labels: logp is
  -||tanh(output) - label||^2, a Gaussian's up to scale and constant.
  """

  def forward(params, batch: Batch) -> Fwd:
    position = jnp.asarray(layout.position)
    out = model.apply(config, params, batch.extra["x"], position=position, key=key)
    aux = dict(out.aux)
    if pairs and "k" in out.routes:
      each = jax.vmap(info_nce)(*(out.routes[name] for name in ("q", "k", "contrast")))
      aux["contrast"] = jnp.sum(each)
    if layout.family.continuous:
      error = jnp.tanh(out.outputs) - batch.extra["label"]
      return Fwd(logp=-jnp.sum(error**2, axis=-1), aux=aux)
    logp = jax.nn.log_softmax(out.outputs)
    label = jax.nn.one_hot(batch.tokens, layout.family.actions, dtype=logp.dtype)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return Fwd(logp=jnp.sum(label * logp, axis=-1), entropy=entropy, aux=aux)

  return forward
