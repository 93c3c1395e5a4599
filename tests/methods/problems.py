"""Random ragged batches, and the same batch in three layouts."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import methods
from grpo_jax.types import Batch, Fwd, Rollouts

TOKEN_FIELDS = ("logp", "logp_old", "logp_ref", "entropy", "value", "value_old", "entropy_old")


@dataclasses.dataclass
class Problem:
  """numpy arrays of N x G rollouts: tokens, trained and the six fields are [N, G, T]."""

  reward: np.ndarray
  alive: np.ndarray
  truncated: np.ndarray
  trained: np.ndarray  # bool; may have holes (tool tokens) inside a completion
  tokens: np.ndarray
  fields: dict
  unit: np.ndarray | None = None  # [N, G, T] unit of a token in its rollout; None: all are one unit
  given: np.ndarray | None = None  # bool [N, G]: a demonstration; None: all are sampled
  unit_value: np.ndarray | None = None  # [N, G, K] one number a unit, for what a method needs of it

  def __post_init__(self):
    if self.given is None:
      self.given = np.zeros(self.reward.shape, bool)
    if self.unit is None:
      self.unit = np.zeros(self.trained.shape, int)
    if self.unit_value is None:
      self.unit_value = np.zeros((*self.reward.shape, 1), self.reward.dtype)

  def length(self):
    return self.trained.sum(-1)


def ragged(
  seed, n=4, g=4, t=6, dead=0.1, holes=0.1, spread=0.4, dtype=np.float32, units=1
) -> Problem:
  rng = np.random.default_rng(seed)
  unit_rng = np.random.default_rng([seed, 1])
  shape = (n, g, t)
  logp_old = -rng.gamma(1.5, 1.0, shape)
  fields = {
    "logp": logp_old + spread * rng.normal(size=shape),
    "logp_old": logp_old,
    "logp_ref": logp_old + spread * rng.normal(size=shape),
    "entropy": rng.uniform(0, 2, shape),
    "value": rng.normal(size=shape),
    "value_old": rng.normal(size=shape),
    "entropy_old": np.random.default_rng([seed, 2]).uniform(0, 2, shape),
  }
  length = rng.integers(1, t + 1, (n, g))
  trained = (np.arange(t) < length[..., None]) & (rng.uniform(size=shape) > holes)
  reward = rng.normal(size=(n, g))
  alive = rng.uniform(size=(n, g)) > dead
  return Problem(
    reward=np.where(alive, reward, np.nan).astype(dtype),
    alive=alive,
    truncated=rng.uniform(size=(n, g)) < 0.2,
    trained=trained,
    tokens=rng.integers(0, 50, shape),
    fields={k: v.astype(dtype) for k, v in fields.items()},
    unit=np.sort(unit_rng.integers(0, units, shape), axis=-1),
    unit_value=unit_rng.normal(size=(n, g, units)).astype(dtype),
  )


def permuted(p, move):
  changes = {f.name: getattr(p, f.name) for f in dataclasses.fields(p)}
  return Problem(
    **{
      name: {k: move(v) for k, v in x.items()} if name == "fields" else move(x)
      for name, x in changes.items()
    }
  )


def token_ratio(p):
  return np.exp(p.fields["logp"] - p.fields["logp_old"])


def sequence_ratio(p):
  d = np.where(p.trained, p.fields["logp"] - p.fields["logp_old"], 0)
  same = (p.unit[..., :, None] == p.unit[..., None, :]) & p.trained[..., None, :]
  return np.exp((same * d[..., None, :]).sum(-1) / np.maximum(same.sum(-1), 1))


def hpt_ratio(p):
  return np.where(p.given[..., None], 1, token_ratio(p))


def rollouts_of(p: Problem) -> Rollouts:
  return Rollouts(
    prompt=jnp.arange(p.reward.shape[0], dtype=jnp.int32),
    reward=jnp.asarray(p.reward),
    alive=jnp.asarray(p.alive),
    correct=jnp.asarray(p.alive & (np.nan_to_num(p.reward) > 0)),
    truncated=jnp.asarray(p.truncated),
    length=jnp.asarray(p.length(), jnp.int32),
    given=jnp.asarray(p.given) if p.given.any() else None,
    step=jnp.int32(0),
  )


def lay_out(p: Problem, layout: str, needs: tuple[str, ...] = (), junk: float = 0.0):
  """(rollouts, batch, fwd, place): place maps [N, G, T] into rows and columns of the layout.

  flat: a row is a rollout. shared: a row is a prompt, its completions are its units. cut: a rollout
  is two rows. packed: a row is half a group. A rollout's units stand side by side. `junk` fills
  every slot the mask excludes.
  """
  n, g, t = p.trained.shape
  i, j, k = np.meshgrid(np.arange(n), np.arange(g), np.arange(t), indexing="ij")
  flat = i * g + j
  half = t // 2
  if layout == "flat":
    row, col, unit, owner = flat, k, np.zeros_like(k), np.arange(n * g)[:, None]
    width = t
  elif layout == "shared":
    row, col, unit, owner = i, j * t + k, j, np.arange(n * g).reshape(n, g)
    width = g * t
  elif layout == "cut":
    row, col, unit = 2 * flat + (k >= half), np.where(k < half, k, k - half), np.zeros_like(k)
    owner, width = np.arange(n * g).repeat(2)[:, None], t - half
  elif layout == "packed":
    row, col, unit = flat // 2, (j % 2) * t + k, j % 2
    owner, width = np.arange(n * g).reshape(-1, 2), 2 * t
  else:
    raise ValueError(layout)
  each = p.unit_value.shape[2]
  unit, owner = unit * each + p.unit, owner.repeat(each, axis=1)
  rows, units = owner.shape
  mask = np.zeros((rows, width), bool)
  mask[row, col] = p.trained
  units_of_tokens = np.zeros((rows, width), np.int32)
  units_of_tokens[row, col] = unit
  unit_mask = np.zeros((rows, units), bool)
  unit_mask[row[p.trained], unit[p.trained]] = True

  def put(x):
    out = np.full((rows, width), junk, x.dtype)
    out[row[p.trained], col[p.trained]] = x[p.trained]
    return jnp.asarray(out)

  made = {name: put(x) for name, x in p.fields.items()}
  tokens = np.full((rows, width), -7 if np.isnan(junk) else 0, np.int32)
  tokens[row[p.trained], col[p.trained]] = p.tokens[p.trained]
  dtype = p.reward.dtype
  of_unit = p.unit_value.reshape(n * g, each)[owner, np.arange(units) % each]
  of_unit = jnp.asarray(np.where(unit_mask, of_unit, junk), dtype)
  extra = {"value": made["value_old"]} if "value_old" in made else {}
  extra["answer_logp"] = of_unit
  batch = Batch(
    tokens=jnp.asarray(tokens),
    mask=jnp.asarray(mask, dtype),
    unit=jnp.asarray(units_of_tokens),
    unit_mask=jnp.asarray(unit_mask, dtype),
    owner=jnp.asarray(owner, jnp.int32),
    logp_old=made["logp_old"],
    logp_sampler=made["logp_old"],
    logp_ref=made["logp_ref"] if "ref" in needs else None,
    entropy_old=made["entropy_old"] if "entropy_old" in needs else None,
    unit_reward=of_unit if "unit_reward" in needs else None,
    extra={k: x for k, x in extra.items() if k in needs},
  )
  fwd = Fwd(
    logp=made["logp"],
    entropy=made["entropy"] if "entropy" in needs else None,
    value=made["value"] if "value" in needs else None,
  )
  return rollouts_of(p), batch, fwd, (row, col)


def stable(case, adv, ratio):
  """1 where the clip of PPO leaves the gradient alone; CISPO and REINFORCE never lose it."""
  if case.ratio not in (token_ratio, sequence_ratio):
    return np.ones_like(adv)
  kwargs = {**methods.defaults(case.name), **case.kwargs}
  low = (adv < 0) & (ratio < 1 - kwargs["eps_low"])
  high = (adv > 0) & (ratio > 1 + kwargs["eps_high"])
  dual = (adv < 0) & (ratio > (kwargs.get("dual_clip") or np.inf))
  return np.where(low | high | dual, 0.0, 1.0)


def collectives(f, *args):
  """(result, number of all-reduces, number of other collectives) of the compiled f."""
  compiled = jax.jit(f).lower(*args).compile()
  count = lambda op: len(re.findall(rf" {op}(?:-start)?\(", compiled.as_text()))
  rest = sum(map(count, ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")))
  return compiled(*args), count("all-reduce"), rest


def value_and_grad(method, fwd, batch, credit):
  """(loss, metrics, d loss / d logp, d loss / d value or None)."""
  if fwd.value is None:
    f = lambda logp: method.loss(fwd.replace(logp=logp), batch, credit)
    (loss, metrics), grad = jax.value_and_grad(f, has_aux=True)(fwd.logp)
    return loss, metrics, grad, None
  f = lambda logp, value: method.loss(fwd.replace(logp=logp, value=value), batch, credit)
  (loss, metrics), grads = jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(fwd.logp, fwd.value)
  return loss, metrics, *grads


@functools.cache
def compiled(name, **kwargs):
  """(method, step): step(state, rollouts, batch, fwd) -> (credit, loss, d loss / d logp), jitted.

  One program, where a test would else compile every operation of `credit` for its shapes.
  """
  method = methods.get(name, **kwargs)

  def step(state, rollouts, batch, fwd):
    credit = method.credit(state, rollouts, batch)
    loss, _, grad, _ = value_and_grad(method, fwd, batch, credit)
    return credit, loss, grad

  return method, jax.jit(step)


@functools.cache
def get(name, **kwargs):
  """methods.get with `credit` and `remember` jitted: equal settings share what is compiled."""
  method = methods.get(name, **kwargs)
  return dataclasses.replace(
    method, credit=jax.jit(method.credit), remember=jax.jit(method.remember)
  )


_STEPS = {}  # by id; the method stays with its step, so no other takes its id


def step_of(method):
  """step(state, rollouts, batch, fwd) -> (credit, (loss, metrics, *grads)), jitted once."""

  def step(state, rollouts, batch, fwd):
    credit = method.credit(state, rollouts, batch)
    return credit, value_and_grad(method, fwd, batch, credit)

  return _STEPS.setdefault(id(method), (method, jax.jit(step)))[1]


def run(method, problem, layout="flat", junk=0.0):
  """credit and loss in one go; gradients come back as [N, G, T]."""
  rollouts, batch, fwd, place = lay_out(problem, layout, method.needs, junk)
  state = method.init(len(problem.reward))
  credit, (loss, metrics, *grads) = step_of(method)(state, rollouts, batch, fwd)
  grads = [None if d is None else np.asarray(d)[place] for d in grads]
  return np.asarray(loss), metrics, *grads, np.asarray(credit.weight)[place]


def without_jit(method, problem):
  """(loss, gradient) of `run`, operation by operation: equal formulas are equal bitwise."""
  rollouts, batch, fwd, place = lay_out(problem, "flat", method.needs)
  credit = method.credit(method.init(len(problem.reward)), rollouts, batch)
  loss, _, grad, _ = value_and_grad(method, fwd, batch, credit)
  return np.asarray(loss), np.asarray(grad)[place]
