"""The one compiled step in which methods and models meet: gradient and optimizer.

gradient  sums over micro-batches; exact, since a loss is sum(weight * term)
update    one optimizer step a mini-batch, `epochs` times over the batch

Credit is made before, once, by `credit_of`; what the method keeps is brought up to date after, by
`supply.remember`: a loop shows all three.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grpo_jax.core import rows
from grpo_jax.models.policy import Forward
from grpo_jax.types import Batch, Credit, Fwd, Method, Metrics, Rollouts, TrainState


@dataclasses.dataclass(frozen=True)
class Cut:
  """How a batch of N prompts is used. `mini` optimizer updates an epoch, each on N / mini prompts;
  each of those is cut into `micro` pieces whose gradients are summed (memory, not mathematics)."""

  epochs: int = 1
  mini: int = 1
  micro: int = 1

  @property
  def on_policy(self) -> bool:
    """One update a batch: the ratio is 1 in value and `logp_old` need not be computed."""
    return self.epochs * self.mini == 1


def init_state(
  params: Any, tx: optax.GradientTransformation, method: Method, num_prompts: int, store: Any = ()
) -> TrainState:
  return TrainState(
    params=params,
    opt_state=tx.init(params),
    method_state=method.init(num_prompts),
    step=jnp.zeros((), jnp.int32),
    store=store,
  )


def credit_of(
  method: Method, method_state: Any, step: jax.Array, rollouts: Rollouts, batch: Batch
) -> Credit:
  """The method's credit of a whole batch; `step`: updates made so far, which `credit` may read."""
  return method.credit(method_state, rollouts.replace(step=step), batch)


def _fresh(tx: optax.GradientTransformation, params: Any, old: Any) -> Any:
  """A new optimizer state, in which schedules stand where they stood."""
  scheduled = lambda x: isinstance(x, optax.ScaleByScheduleState)
  keep = lambda new, old: old if scheduled(old) else new
  return jax.tree.map(keep, tx.init(params), old, is_leaf=scheduled)


def _piece(shape: tuple[int, int], batch: Batch, credit: Credit, pieces: int, index):
  """Batch and credit of one piece of [N, G] = `shape`, with `owner` counted inside the piece."""
  count, group = shape
  if pieces == 1:
    return batch, credit
  batch, credit = rows.piece((batch, credit), count, pieces, index)
  return rows.recounted(batch, (count // pieces, group)), credit


def _combine(a: Metrics, b: Metrics) -> Metrics:
  """Sums over micro-batches, and the maximum of names that begin with "max_"."""
  return {k: jnp.maximum(a[k], b[k]) if k.startswith("max_") else a[k] + b[k] for k in a}


def _observe(fwd: Fwd, batch: Batch, tokens: jax.Array) -> Metrics:
  """What every run logs, whatever its method. `tokens`: trained tokens of the whole mini-batch."""
  out = {"tokens": jnp.sum(batch.mask)}
  if fwd.entropy is not None:
    known = (batch.mask > 0) & ~jnp.isnan(fwd.entropy)  # NaN: dead; a loss says it where not
    out["entropy"] = jnp.sum(jnp.where(known, fwd.entropy, 0)) / tokens
  if batch.logp_sampler is not None:
    gap = jnp.abs(fwd.logp - batch.logp_sampler)
    out["max_logp_gap"] = jnp.max(jnp.where((batch.mask > 0) & ~jnp.isnan(gap), gap, 0))
  return out


def _per_token(fwd: Fwd, batch: Batch) -> dict[str, jax.Array]:
  old = fwd.logp if batch.logp_old is None else batch.logp_old
  out = {"logp": fwd.logp, "ratio": jnp.exp(jnp.clip(fwd.logp - old, -20, 20))}
  return out if fwd.entropy is None else out | {"entropy": fwd.entropy}


def _scaled(credit: Credit, mini: int) -> Credit:
  """What a mini-batch is to minimize: its share of the whole, times the number of mini-batches."""
  if mini == 1:
    return credit
  weights = {name: x * mini for name, x in credit.weights.items()}
  return credit.replace(weight=credit.weight * mini, weights=weights)


def make_update(
  method: Method,
  forward: Forward,
  tx: optax.GradientTransformation,
  cut: Cut = Cut(),
  learning_rate: Callable[[jax.Array], jax.Array] | None = None,
  shardings: TrainState | None = None,
):
  """update(state, rollouts, batch, credit, key) -> (state, metrics, tokens), jitted, `state`
  donated.

  metrics: scalars of the first mini-batch's pass for what is measured before the update
  (max_logp_gap), means over mini-batches for the rest. tokens: arrays [R, T] of the first pass
  (logp, entropy, ratio, adv) for the rollout viewer. `key` shuffles prompts into mini-batches when
  there are several. Advantages and denominators are those of the whole batch (types.Credit).
  shardings: of the state, which the new state keeps; left to XLA, they may differ from the old
  ones, and every program that reads the state is compiled once more.
  """

  def loss_of(params, batch: Batch, credit: Credit, tokens):
    fwd = forward(params, batch)
    loss, metrics = method.loss(fwd, batch, credit)
    return loss, (metrics | _observe(fwd, batch, tokens), _per_token(fwd, batch))

  def gradient(params, shape, batch, credit):
    """Sum over micro-batches of gradient, loss and metrics; per-token arrays in the given order."""
    tokens = jnp.maximum(jnp.sum(batch.mask), 1)
    grad = jax.value_and_grad(loss_of, has_aux=True)
    if cut.micro == 1:
      (loss, (metrics, per_token)), grads = grad(params, batch, credit, tokens)
      return grads, metrics | {"loss": loss}, per_token

    def one(index):
      b, c = _piece(shape, batch, credit, cut.micro, index)
      (loss, (metrics, per_token)), grads = grad(params, b, c, tokens)
      return grads, metrics | {"loss": loss}, per_token

    def add(carry, index):
      grads, metrics, per_token = one(index)
      total, seen = carry
      return (jax.tree.map(jnp.add, total, grads), _combine(seen, metrics)), per_token

    shapes = jax.eval_shape(one, jnp.int32(0))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])
    zero[1].update({k: v - jnp.inf for k, v in zero[1].items() if k.startswith("max_")})
    (grads, metrics), pieces = jax.lax.scan(add, zero, jnp.arange(cut.micro))
    return grads, metrics, jax.tree.map(lambda x: rows.interleave(x, shape[0]), pieces)

  def one_update(carry, shape, batch, credit):
    params, opt_state = carry
    grads, metrics, per_token = gradient(params, shape, batch, credit)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
      updates, opt_state = tx.update(grads, opt_state, params)
    metrics["grad_norm"] = optax.tree.norm(grads)
    new = optax.apply_updates(params, updates)
    new = new if method.settle is None else method.settle(new, params)
    return (new, opt_state), metrics, per_token

  def update(state: TrainState, rollouts: Rollouts, batch: Batch, credit: Credit, key: jax.Array):
    opt_state = state.opt_state
    if method.fresh_optimizer:
      opt_state = _fresh(tx, state.params, opt_state)
    carry, shape = (state.params, opt_state), rollouts.reward.shape
    if cut.on_policy:
      carry, metrics, per_token = one_update(carry, shape, batch, credit)
    else:
      carry, metrics, per_token = _epochs(carry, shape, batch, credit, key)
    params, opt_state = carry
    if learning_rate is not None:
      metrics["lr"] = learning_rate(state.step)
    adv = credit.adv_token
    adv = jnp.take_along_axis(credit.adv, batch.unit, axis=1) if adv is None else adv
    per_token["adv"] = adv * batch.mask
    state = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
    return state, metrics, per_token

  def _epochs(carry, shape, batch, credit, key):
    whole = _scaled(credit, cut.mini)

    def mini(carry, index):
      epoch, j = index // cut.mini, index % cut.mini
      order = jax.random.permutation(jax.random.fold_in(key, epoch), shape[0])
      b, c = _reorder(shape, batch, whole, order)
      b, c = _piece(shape, b, c, cut.mini, j)
      carry, metrics, _ = one_update(carry, (shape[0] // cut.mini, shape[1]), b, c)
      return carry, metrics

    carry, metrics = jax.lax.scan(mini, carry, jnp.arange(cut.epochs * cut.mini))
    out = {k: jnp.max(v) if k.startswith("max_") else jnp.mean(v) for k, v in metrics.items()}
    if "max_logp_gap" in metrics:  # only the first pass is by the policy that sampled
      out["max_logp_gap"] = metrics["max_logp_gap"][0]
    out["tokens"] = jnp.sum(metrics["tokens"]) / cut.epochs
    old = batch.logp_old
    assert old is not None, "several updates a batch need logp_old"
    return carry, out, {"logp": old, "ratio": jnp.ones_like(old)}

  out = None if shardings is None else (shardings, None, None)
  return jax.jit(update, donate_argnums=0, out_shardings=out)


def _reorder(shape: tuple[int, int], batch: Batch, credit: Credit, order: jax.Array):
  """Prompts in another order, rows with them; `owner` keeps pointing at its rollout."""
  batch, credit = rows.take((batch, credit), shape[0], order)
  return rows.recounted(batch, shape), credit
