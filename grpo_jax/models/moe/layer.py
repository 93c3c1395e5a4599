"""The feed-forward layer of T2MIR (paper 04): token-wise and task-wise experts, side by side.

  y = concat(MoE_token(u), MoE_task(u)), each R^d -> R^(d/2), or one of them R^d -> R^d.

The token gate is noisy in training and evened out by a balance loss. The task gate has no noise;
two prompts of one task are drawn together by a contrastive loss between its representation q and
that of the key gate, its exponential moving average (core/contrastive.py). Hard routing sends a
whole sequence to the experts of its mean token, in training too: a token's experts then depend on
what follows it. No dropout.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from grpo_jax.core import load_balance
from grpo_jax.errors import UserError
from grpo_jax.models.moe import dispatch as moe_dispatch
from grpo_jax.models.moe import gates as moe_gates
from grpo_jax.models.moe import mesh as moe_mesh
from grpo_jax.names import between, one_of
from grpo_jax.types import Record, record

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Sizes of one layer; `experts` = 0 or `task_experts` = 0 leaves that half out, and the other
  one then has the full width. Both gates choose `top_k` experts.

  One expert and no task experts is a dense layer: what `dense_of` makes for comparisons.
  """

  experts: int = 6  # E1, token-wise
  top_k: int = 2
  hidden: int = 128  # of every expert
  noisy: bool = True  # noise on the token gate's logits in training
  task_experts: int = 8  # E2
  hard: bool = False  # a sequence is routed as one, by its mean token
  softmax: bool = False  # the representation is softmax(logits), not the logits (add_softmax)
  skip: int = 0  # leading tokens that are left out of the representation (1: DPT's query)
  dispatch: str | None = None  # how experts get their tokens: a name of moe_dispatch.WAYS

  def __post_init__(self):
    if not (self.experts or self.task_experts):
      raise UserError("moe.experts=0 and moe.task_experts=0: one of them must be above 0")
    for name in ("experts", "task_experts"):
      count = getattr(self, name)
      if count < 0 or 0 < count < self.top_k:
        raise UserError(f"moe.{name}={count}: must be 0, or at least top_k={self.top_k}")
    between("moe.top_k", self.top_k, 1)
    between("moe.hidden", self.hidden, 1)
    between("moe.skip", self.skip, 0)
    if self.dispatch is not None:
      one_of("moe.dispatch", self.dispatch, moe_dispatch.WAYS)

  def halves(self, width: int) -> dict[str, tuple[int, int]]:
    """{"token" or "task": (experts, output width)} of those that exist."""
    both = {"token": self.experts, "task": self.task_experts}
    found = {name: count for name, count in both.items() if count}
    return {name: (count, width // len(found)) for name, count in found.items()}


def dense_of(config: MoEConfig, width: int) -> MoEConfig:
  """A dense layer with as many weights (biases apart) as one token meets in the experts."""
  met = sum(
    config.top_k * config.hidden * (width + out) for _, out in config.halves(width).values()
  )
  return MoEConfig(experts=1, top_k=1, hidden=met // (2 * width), noisy=False, task_experts=0)


def init(config: MoEConfig, width: int, key: Array) -> Params:
  """{"token": {gate, noise, experts}, "task": {gate, experts, contrast}}; the noise starts at
  0.01 + log 2 for every logit (W_noise = 0), `contrast`, W of the loss, as N(0, 1)."""
  if len(config.halves(width)) == 2 and width % 2:
    raise UserError(f"hidden={width}: must be even, each half of the experts gives one half")
  params: Params = {}
  for name, (count, out) in config.halves(width).items():
    gate, experts, contrast, key = jax.random.split(key, 4)
    half: Params = {
      "gate": moe_gates.init(gate, width, count),
      "experts": moe_dispatch.init(experts, count, width, config.hidden, out),
    }
    if name == "token" and config.noisy:
      half["noise"] = jnp.zeros((width, count))
    if name == "task":
      half["contrast"] = jax.random.normal(contrast, (count, count))
    params[name] = half
  return params


@record
class Seen(Record):
  """What a layer did. `routes`, of the halves that exist (for inspection, replay and losses):

  token_expert, task_expert i32[B, L, k]    the chosen experts
  token_gate f32[B, L, E1], task_gate f32[B, L, E2]    their weights, 0 elsewhere
  q, k f32[B, E2]    representation of the sequence by the task gate, and by the key gate
                     (no gradient)
  contrast f32[E2, E2]    W of the contrastive loss
  """

  balance: Float[Array, ""]  # CV^2(importance) + CV^2(load), without its weight
  routes: Mapping[str, Array] = dataclasses.field(default_factory=dict)


def apply(
  config: MoEConfig,
  params: Params,
  u: Float[Array, "B L d"],
  *,
  act: moe_dispatch.Act,
  key_gate: moe_gates.Gate | None = None,
  key: Array | None = None,
  routes: Mapping[str, Array] | None = None,
  bias: Mapping[str, Array] | None = None,
  pooled: Float[Array, "B d"] | None = None,
  where: NamedSharding | None = None,
) -> tuple[Float[Array, "B L d"], Seen]:
  """(y, what was seen).

  key: of the noise; None (evaluation) draws none. routes: `Seen.routes` of an earlier call, whose
  choice of experts is taken; weights are computed anew from the logits, so the gate has its
  gradient, and equal parameters, input and key give equal outputs. bias: {"token": [E1], "task":
  [E2]}, added to the logits for the choice alone. key_gate: needed for `k`. pooled: the mean token
  that hard routing goes by; None is the mean of u. where: how the experts are split over a mesh.
  """
  routes, bias = routes or {}, bias or {}
  flat = u.reshape(-1, u.shape[-1])
  parts, seen, balance = [], {}, jnp.zeros(())
  for name in config.halves(u.shape[-1]):  # not the dict's order: jit sorts its keys
    half = params[name]
    if name == "token":
      z, noisy, sigma = _token_logits(half, flat, key)
    else:
      noisy = z = _task_logits(config, half["gate"], u, pooled)
    recorded = routes.get(f"{name}_expert")
    if recorded is None:
      expert = moe_gates.top_experts(noisy, config.top_k, bias.get(name))
    else:
      expert = recorded.reshape(-1, config.top_k)
    weight = moe_gates.weigh(noisy, expert)
    experts = half["experts"]
    y = moe_mesh.run(where, experts, flat, expert, weight, act, config.dispatch)
    parts.append(y.reshape(*u.shape[:-1], -1))
    gate = moe_gates.placed(expert, weight, z.shape[1])
    if name == "token":
      shift = bias.get(name)
      balance = _balance(gate, z, noisy, sigma, config.top_k, shift)
    else:
      seen |= _representations(config, half, key_gate, u, z)
    seen[f"{name}_expert"] = expert.reshape(*u.shape[:-1], -1)
    seen[f"{name}_gate"] = gate.reshape(*u.shape[:-1], -1)
  return jnp.concatenate(parts, axis=-1), Seen(balance=balance, routes=seen)


def _token_logits(half, flat, key):
  """(logits, logits with noise, its standard deviation or None where there is no noise)."""
  z = moe_gates.gate_logits(half["gate"], flat)
  if key is None or "noise" not in half:
    return z, z, None
  sigma = moe_gates.deviation(half["noise"], flat)
  return z, z + jax.random.normal(key, z.shape) * sigma, sigma


def _task_logits(config, gate, u, pooled) -> Float[Array, "N E"]:
  """One row a token; hard routing repeats that of the mean token."""
  if not config.hard:
    return moe_gates.gate_logits(gate, u.reshape(-1, u.shape[-1]))
  z = moe_gates.gate_logits(gate, jnp.mean(u, axis=1) if pooled is None else pooled)
  return jnp.repeat(z, u.shape[1], axis=0)


def _balance(gate, z, noisy, sigma, k, bias) -> Float[Array, ""]:
  """The balance loss; its load has no gradient without noise or where every expert is chosen."""
  if sigma is None or k == z.shape[1]:
    load = load_balance.count_load(gate)
  else:
    shift = 0.0 if bias is None else bias[None]
    load = load_balance.noisy_load(z + shift, noisy + shift, sigma, k)
  return load_balance.balance_loss(load_balance.importance(gate), load)


def _representations(config, half, key_gate, u, z) -> dict[str, Array]:
  """q and k [B, E2]: the mean over tokens of the gate's logits, or of their softmax; with hard
  routing that of the mean token's. k is of stop_gradient(u) through the key gate."""

  def mean(z):
    z = jax.nn.softmax(z, axis=-1) if config.softmax else z
    return jnp.mean(z.reshape(*u.shape[:-1], -1)[:, config.skip :], axis=1)

  found = {"q": mean(z), "contrast": half["contrast"]}
  if key_gate is not None:
    slow = jax.lax.stop_gradient(key_gate)
    found["k"] = mean(_task_logits(config, slow, jax.lax.stop_gradient(u), None))
  return found


def init_key_gates(layers: Mapping[str, Params]) -> Params:
  """{layer: a copy of its task gate} for params["key_gate"]."""
  return {
    name: jax.tree.map(jnp.array, layer["moe"]["task"]["gate"])
    for name, layer in layers.items()
    if "task" in layer.get("moe", {})
  }
