"""A GPT-2 over vectors: the transformer of in-context RL (papers 27 DPT, 04 T2MIR), pure functions.

Pre-norm blocks with LayerNorm and biases, causal attention, a linear head at every token. Sequences
are what the paper makes them: DPT's transitions as one token each, or states, actions and rewards
as tokens of their own. Float32 throughout; parameters are described in `in_context_layers.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from grpo_jax.errors import UserError
from grpo_jax.models.in_context import attention, layers
from grpo_jax.models.in_context.config import InContextConfig
from grpo_jax.models.moe import layer as moe
from grpo_jax.types import Record, record

__all__ = ["Cache", "InContextConfig", "Out", "apply", "extend", "grow", "init", "open_cache"]

Params = dict[str, Any]
init = layers.init


@record
class Out(Record):
  outputs: Float[Array, "B L outputs"]  # logits, or what a continuous head is made of
  # "balance": CV^2(importance) + CV^2(load), summed over the layers with experts
  aux: Mapping[str, Array] = dataclasses.field(default_factory=dict)
  # `moe.Seen.routes`, stacked over the layers with experts
  routes: Mapping[str, Array] = dataclasses.field(default_factory=dict)


def apply(
  config: InContextConfig,
  params: Params,
  x: Float[Array, "B L inputs"],
  *,
  position: Int[Array, "*B L"] | None = None,
  key: Array | None = None,
  routes: Mapping[str, Array] | None = None,
  bias: Mapping[str, Array] | None = None,
  last: bool = False,
  where: NamedSharding | None = None,
) -> Out:
  """Outputs at every token; entry [b, l] has seen x[b, :l + 1].

  position: i32[L] or [B, L]; None is 0 .. L - 1. key: of the gates' noise in training; None is
  evaluation. routes, bias, where: as in `moe.apply`, the first two stacked over the layers with
  experts. last: nothing but the outputs [B, 1, ..] of the last token, and the last layer computed
  for it alone unless it routes whole sequences. Raises UserError if x is longer than the table of
  positions and no position is given.
  """
  size = x.shape[1]
  if position is None:
    if size > config.positions and not config.sinusoidal:
      raise UserError(f"positions={config.positions}: the sequence has {size} tokens; give more")
    position = jnp.arange(size, dtype=jnp.int32)
  h = layers.embed_vectors(config, params, x, jnp.arange(size, dtype=jnp.int32), position)
  seen = []
  for i in range(config.layers):
    layer = params["layers"][str(i)]
    q, k, v = layers.qkv(config, layer, h)
    whole = config.moe is not None and config.moe.hard and i in config.experts_at
    if last and i == config.layers - 1 and not whole:
      h = layers.after_attention(config, layer, h[:, -1:], attention.at_last(q[:, -1:], k, v))
    else:
      h = layers.after_attention(config, layer, h, attention.causal(q, k, v))
    u = layers.norm(h, layer["norm2"])
    if i not in config.experts_at:
      h = h + layers.feed_forward(config, layer, u)
      continue
    assert config.moe is not None
    y, one = moe.apply(
      config.moe,
      layer["moe"],
      u,
      act=layers.activation(config),
      key_gate=params.get("key_gate", {}).get(str(i)),
      key=None if key is None else jax.random.fold_in(key, i),
      routes=_at(routes, len(seen)),
      bias=_at(bias, len(seen)),
      where=where,
    )
    h = h + y
    seen.append(one)
  outputs = layers.outputs_of(params, h[:, -1:] if last else h)
  if last or not seen:
    return Out(outputs=outputs)
  total = jax.tree.map(lambda *values: jnp.stack(values), *seen)
  return Out(outputs=outputs, aux={"balance": jnp.sum(total.balance)}, routes=total.routes)


@record
class Cache(Record):
  """Keys and values of the tokens so far, by layer; `total`, of hard routing, the sum of the
  tokens that reached each layer with experts.

  Rows and heads share an axis, b * heads + h: with an axis of their own a CPU copies whole caches
  at every token (XLA fuses the reshape for the product with a second writing of the cache).
  """

  k: tuple[Float[Array, "B*heads S d"], ...]
  v: tuple[Float[Array, "B*heads S d"], ...]
  length: Int[Array, ""]  # the same for all rows
  total: tuple[Float[Array, "B d"], ...] = ()


def open_cache(config: InContextConfig, batch: int, size: int) -> Cache:
  """An empty cache for `size` tokens."""
  shape = batch * config.heads, size, config.hidden // config.heads
  empty = lambda: tuple(jnp.zeros(shape) for _ in range(config.layers))
  hard = config.experts_at if config.moe and config.moe.hard else ()
  total = tuple(jnp.zeros((batch, config.hidden)) for _ in hard)
  return Cache(k=empty(), v=empty(), length=jnp.int32(0), total=total)


def grow(cache: Cache, size: int) -> Cache:
  """The same cache with room for `size` tokens. A token costs as much as its cache is large, so a
  long run of single tokens is faster in a few stretches, each with a cache of its own size."""
  more = ((0, 0), (0, size - cache.k[0].shape[1]), (0, 0))
  pad = lambda arrays: tuple(jnp.pad(x, more) for x in arrays)
  return cache.replace(k=pad(cache.k), v=pad(cache.v))


def extend(
  config: InContextConfig,
  params: Params,
  cache: Cache,
  x: Float[Array, "B l inputs"],
  *,
  position: Int[Array, "*B l"] | None = None,
  bias: Mapping[str, Array] | None = None,
) -> tuple[Float[Array, "B l outputs"], Cache]:
  """Outputs of l more tokens, as `apply` on the whole sequence gives them in evaluation.

  The caller sees to it that there is room: more tokens overwrite the last entries. Hard routing
  goes by the mean of the tokens so far, so these outputs equal the last l of `apply` on the
  sequence up to here if only the last layer has experts; with experts below it, earlier tokens
  stay as they were routed when they came.
  """
  size = x.shape[1]
  place = cache.length + jnp.arange(size, dtype=jnp.int32)
  h = layers.embed_vectors(config, params, x, place, place if position is None else position)
  keys, values, total = [], [], list(cache.total)
  for i in range(config.layers):
    layer = params["layers"][str(i)]
    q, k, v = layers.qkv(config, layer, h)
    k = jax.lax.dynamic_update_slice_in_dim(cache.k[i], k, cache.length, axis=1)
    v = jax.lax.dynamic_update_slice_in_dim(cache.v[i], v, cache.length, axis=1)
    keys.append(k)
    values.append(v)
    h = layers.after_attention(config, layer, h, attention.cached(q, k, v, cache.length))
    u = layers.norm(h, layer["norm2"])
    if i not in config.experts_at:
      h = h + layers.feed_forward(config, layer, u)
      continue
    assert config.moe is not None
    m, pooled = config.experts_at.index(i), None
    if config.moe.hard:
      total[m] = total[m] + jnp.sum(u, axis=1)
      pooled = total[m] / (cache.length + size).astype(jnp.float32)
    act = layers.activation(config)
    y, _ = moe.apply(config.moe, layer["moe"], u, act=act, bias=_at(bias, m), pooled=pooled)
    h = h + y
  length = cache.length + size
  new = Cache(k=tuple(keys), v=tuple(values), length=length, total=tuple(total))
  return layers.outputs_of(params, h), new


def _at(arrays: Mapping[str, Array] | None, m: int) -> dict[str, Array] | None:
  """Entry m of everything that is stacked over the layers with experts."""
  return None if arrays is None else {name: x[m] for name, x in arrays.items()}
