"""The one compiled step in which methods and models meet: credit, gradient, update, memory.

credit    from data alone, on the whole batch
gradient  sums over micro-batches; exact, since a loss is sum(weight * term)
update    one optimizer step a mini-batch, `epochs` times over the batch
remember  the method's own state, after the update
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grpo_jax.models.policy import Forward
from grpo_jax.types import Batch, Credit, Fwd, Method, Metrics, Now, Rollouts, TrainState

# What the loops can put into a batch for methods that ask for it.
SUPPLIED = ("logp_old", "ref", "entropy", "value", "entropy_old")


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


def wants_old(method: Method, cut: Cut) -> bool:
  """Whether the policy that sampled has to score the batch before the update."""
  return not cut.on_policy or bool({"logp_old", "value", "entropy_old"} & set(method.needs))


def with_old(batch: Batch, old: Fwd) -> Batch:
  """The batch with what the policy that sampled it says of its tokens."""
  values = {} if old.value is None else {"value": old.value}
  return batch.replace(logp_old=old.logp, entropy_old=old.entropy, extra={**batch.extra, **values})


def init_state(params: Any, tx: optax.GradientTransformation, method: Method, num_prompts: int):
  return TrainState(
    params=params,
    opt_state=tx.init(params),
    method_state=method.init(num_prompts),
    step=jnp.zeros((), jnp.int32),
  )


def _fresh(tx: optax.GradientTransformation, params: Any, old: Any) -> Any:
  """A new optimizer state, in which schedules stand where they stood."""
  scheduled = lambda x: isinstance(x, optax.ScaleByScheduleState)
  keep = lambda new, old: old if scheduled(old) else new
  return jax.tree.map(keep, tx.init(params), old, is_leaf=scheduled)


def _take(tree: Any, count: int, pieces: int, index) -> Any:
  """Piece `index` of every array whose leading dimension is a multiple of `count` prompts.

  Piece j holds the prompts j, j + pieces, ...: with prompts split over devices in blocks, every
  device has its share of every piece.
  """

  def pick(x):
    per = x.shape[0] // count
    x = x.reshape(count // pieces, pieces, per, *x.shape[1:])
    x = jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)
    return x.reshape(count // pieces * per, *x.shape[2:])

  return jax.tree.map(pick, tree)


def _piece(rollouts: Rollouts, batch: Batch, extras: Any, pieces: int, index):
  """Rollouts, batch and credit of one piece, with `owner` counted inside the piece."""
  count, group = rollouts.reward.shape
  if pieces == 1:
    return rollouts, batch, extras
  prompt = batch.owner // group  # prompts of a piece are index, index + pieces, ...
  batch = batch.replace(owner=(prompt - index) // pieces * group + batch.owner % group)
  return _take((rollouts, batch, extras), count, pieces, index)


def _combine(a: Metrics, b: Metrics) -> Metrics:
  """Sums over micro-batches, and the maximum of names that begin with "max_"."""
  return {k: jnp.maximum(a[k], b[k]) if k.startswith("max_") else a[k] + b[k] for k in a}


def _observe(fwd: Fwd, batch: Batch, tokens: jax.Array) -> Metrics:
  """What every run logs, whatever its method. `tokens`: trained tokens of the whole mini-batch."""
  out = {"tokens": jnp.sum(batch.mask)}
  if fwd.entropy is not None:
    out["entropy"] = jnp.sum(batch.mask * fwd.entropy) / tokens
  if batch.logp_sampler is not None:
    sampled = (batch.mask > 0) & ~jnp.isnan(batch.logp_sampler)
    gap = jnp.where(sampled, jnp.abs(fwd.logp - batch.logp_sampler), 0)
    out["max_logp_gap"] = jnp.max(gap)
  return out


def _per_token(fwd: Fwd, batch: Batch) -> dict[str, jax.Array]:
  old = fwd.logp if batch.logp_old is None else batch.logp_old
  out = {"logp": fwd.logp, "ratio": jnp.exp(jnp.clip(fwd.logp - old, -20, 20))}
  return out if fwd.entropy is None else out | {"entropy": fwd.entropy}


def make_update(
  method: Method,
  forward: Forward,
  tx: optax.GradientTransformation,
  cut: Cut = Cut(),
  learning_rate: Callable[[jax.Array], jax.Array] | None = None,
  shardings: TrainState | None = None,
):
  """update(state, rollouts, batch, key) -> (state, metrics, tokens), jitted, `state` donated.

  metrics: scalars of the first mini-batch's pass for what is measured before the update
  (max_logp_gap), means over mini-batches for the rest. tokens: arrays [R, T] of the first pass
  (logp, entropy, ratio, adv) for the rollout viewer. `key` shuffles prompts into mini-batches when
  there are several. Denominators are those of the mini-batch; advantages those of the whole batch.
  shardings: of the state, which the new state keeps; left to XLA, they may differ from the old
  ones, and every program that reads the state is compiled once more.
  """

  def loss_of(params, batch: Batch, credit: Credit, tokens):
    fwd = forward(params, batch)
    loss, metrics = method.loss(fwd, batch, credit)
    return loss, (metrics | _observe(fwd, batch, tokens), _per_token(fwd, batch))

  def gradient(params, rollouts, batch, credit):
    """Sum over micro-batches of gradient, loss and metrics; per-token arrays in the given order."""
    tokens = jnp.maximum(jnp.sum(batch.mask), 1)
    grad = jax.value_and_grad(loss_of, has_aux=True)
    if cut.micro == 1:
      (loss, (metrics, per_token)), grads = grad(params, batch, credit, tokens)
      return grads, metrics | {"loss": loss}, per_token

    def one(index):
      _, b, c = _piece(rollouts, batch, credit, cut.micro, index)
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
    return grads, metrics, jax.tree.map(lambda x: _interleave(x, rollouts.reward.shape), pieces)

  def one_update(carry, rollouts, batch, adv):
    params, opt_state = carry
    credit = method.credit(adv["state"], rollouts, batch)
    if cut.mini > 1:  # whole-batch advantages under the mini-batch's own denominators
      credit = credit.replace(adv=adv["adv"], adv_token=adv["adv_token"])
    grads, metrics, per_token = gradient(params, rollouts, batch, credit)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
      updates, opt_state = tx.update(grads, opt_state, params)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return (optax.apply_updates(params, updates), opt_state), metrics, per_token

  def update(state: TrainState, rollouts: Rollouts, batch: Batch, key: jax.Array):
    credit = method.credit(state.method_state, rollouts, batch)
    opt_state = state.opt_state
    if method.fresh_optimizer:
      opt_state = _fresh(tx, state.params, opt_state)
    carry = (state.params, opt_state)
    whole = {"adv": credit.adv, "adv_token": credit.adv_token}
    memory = state.method_state
    if cut.on_policy:
      carry, metrics, per_token = one_update(carry, rollouts, batch, whole | {"state": memory})
    else:
      carry, metrics, per_token = _epochs(carry, rollouts, batch, whole, memory, key)
    params, opt_state = carry
    if learning_rate is not None:
      metrics["lr"] = learning_rate(state.step)
    now = Now(metrics=metrics, step=state.step)
    memory = method.remember(state.method_state, rollouts, batch, now)
    adv = credit.adv_token
    adv = jnp.take_along_axis(credit.adv, batch.unit, axis=1) if adv is None else adv
    per_token["adv"] = adv * batch.mask
    state = TrainState(params=params, opt_state=opt_state, method_state=memory, step=state.step + 1)
    return state, metrics, per_token

  def _epochs(carry, rollouts, batch, whole, memory, key):
    count, group = rollouts.reward.shape

    def mini(carry, index):
      epoch, j = index // cut.mini, index % cut.mini
      order = jax.random.permutation(jax.random.fold_in(key, epoch), count)
      r, b, w = _reorder(rollouts, batch, whole, order, group)
      r, b, w = _piece(r, b, w, cut.mini, j)
      carry, metrics, per_token = one_update(carry, r, b, w | {"state": memory})
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


def _reorder(rollouts: Rollouts, batch: Batch, whole: Any, order: jax.Array, group: int):
  """Prompts in another order, rows with them; `owner` keeps pointing at its rollout."""
  count = order.shape[0]

  def move(x):
    y = x.reshape(count, x.shape[0] // count, *x.shape[1:])
    return jnp.take(y, order, axis=0).reshape(x.shape)

  place = jnp.argsort(order)  # where each prompt went
  owner = place[batch.owner // group] * group + batch.owner % group
  return jax.tree.map(move, (rollouts, batch.replace(owner=owner), whole))


def _interleave(pieces: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """[micro, R / micro, T] -> [R, T], undoing `_take`."""
  micro, rows, t = pieces.shape
  count = shape[0]
  per = micro * rows // count
  x = pieces.reshape(micro, count // micro, per, t).transpose(1, 0, 2, 3)
  return x.reshape(micro * rows, t)
