"""Parameters of the in-context transformer and the parts of a layer, as pure functions.

A nested dict of float32 arrays (d = hidden, F = ffn * d; matrices are [inputs, outputs]):
  embed: one {"w", "b"}, or by modality ("0", "1", ..; with `embed_hidden` also "w2", "b2")
  position [positions, d] (absent if `sinusoidal`)
  layers: "0", "1", ..: norm1, norm2 {"scale", "bias"}; qkv [d, 3 d], proj [d, d] and their
          biases; up [d, F], down [F, d] and biases, or moe (`moe.init`); attention_norm
  norm; head {"w", "b"}; key_gate: by layer, where there are task experts (`moe.init_key_gates`)
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.models.decoder import linear
from grpo_jax.models.in_context.config import InContextConfig
from grpo_jax.models.moe import layer as moe
from grpo_jax.models.moe.gates import uniform_weights

Params = dict[str, Any]
_EPS = 1e-5
_STD = 0.02


def init(config: InContextConfig, key: Array) -> Params:
  """GPT-2's start: N(0, 0.02), those before a residual divided by sqrt(2 layers), biases 0;
  embedders, head and experts U(+-1 / sqrt(inputs)) as the papers' linear maps."""
  keys = jax.random.split(key, 4)
  d = config.hidden
  params: Params = {
    "embed": _init_embed(config, keys[0]),
    "layers": {
      str(i): _init_layer(config, i, jax.random.fold_in(keys[1], i)) for i in range(config.layers)
    },
    "norm": _init_norm(d),
    "head": _init_linear(keys[2], d, config.outputs),
  }
  if not config.sinusoidal:
    params["position"] = _STD * jax.random.normal(keys[3], (config.positions, d))
  if config.moe and config.moe.task_experts:
    params["key_gate"] = moe.init_key_gates(params["layers"])
  return params


def _init_linear(key, inputs, outputs, names=("w", "b")):
  w, b = jax.random.split(key)
  return {
    names[0]: uniform_weights(w, (inputs, outputs), inputs),
    names[1]: uniform_weights(b, (outputs,), inputs),
  }


def _init_embed(config, key):
  if not config.modalities:
    return _init_embedder(config, key, config.inputs)
  keys = jax.random.split(key, len(config.modalities))
  return {
    str(m): _init_embedder(config, keys[m], width) for m, width in enumerate(config.modalities)
  }


def _init_embedder(config, key, width):
  if not config.embed_hidden:
    return _init_linear(key, width, config.hidden)
  first, second = jax.random.split(key)
  return _init_linear(first, width, config.embed_hidden) | _init_linear(
    second, config.embed_hidden, config.hidden, ("w2", "b2")
  )


def _init_norm(d):
  return {"scale": jnp.ones(d), "bias": jnp.zeros(d)}


def _init_layer(config, index, key):
  d, f = config.hidden, config.ffn * config.hidden
  keys = jax.random.split(key, 4)
  residual = _STD / math.sqrt(2 * config.layers)
  normal = lambda key, shape, std: std * jax.random.normal(key, shape)
  layer = {
    "norm1": _init_norm(d),
    "norm2": _init_norm(d),
    "qkv": normal(keys[0], (d, 3 * d), _STD),
    "qkv_bias": jnp.zeros(3 * d),
    "proj": normal(keys[1], (d, d), residual),
    "proj_bias": jnp.zeros(d),
  }
  if config.attention_norm:
    layer["attention_norm"] = _init_norm(d)
  if config.moe and index in config.experts_at:
    return layer | {"moe": moe.init(config.moe, d, keys[2])}
  return layer | {
    "up": normal(keys[2], (d, f), _STD),
    "up_bias": jnp.zeros(f),
    "down": normal(keys[3], (f, d), residual),
    "down_bias": jnp.zeros(d),
  }


# ---- the parts -----------------------------------------------------------------------------------


def activation(config: InContextConfig):
  if config.activation == "gelu":
    return functools.partial(jax.nn.gelu, approximate=True)
  return jax.nn.leaky_relu


def affine(x: Array, w: Array, b: Array) -> Array:
  return linear(x, w) + b.reshape((1,) * (x.ndim - 1) + (-1,))


def norm(x: Array, params: Params) -> Array:
  """(x - mean) / sqrt(var + 1e-5) * scale + bias over the last axis."""
  mean = jnp.mean(x, axis=-1, keepdims=True)
  x = x - mean
  x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + _EPS)
  lead = (1,) * (x.ndim - 1) + (-1,)
  return x * params["scale"].reshape(lead) + params["bias"].reshape(lead)


def _embedder(config: InContextConfig, params: Params, x: Array) -> Array:
  x = affine(x, params["w"], params["b"])
  if not config.embed_hidden:
    return x
  return affine(activation(config)(x), params["w2"], params["b2"])


def embed_vectors(
  config: InContextConfig, params: Params, x, place, position
) -> Float[Array, "B L d"]:
  """place i32[L]: index in the sequence, which decides the kind; position i32[L] or [B, L]."""
  if config.modalities:
    steps = jnp.maximum(place - config.lead, 0) % len(config.modalities)
    h = jnp.zeros((*x.shape[:-1], config.hidden))
    for m, width in enumerate(config.modalities):
      one = _embedder(config, params["embed"][str(m)], x[..., :width])
      h = jnp.where((steps == m)[None, :, None], one, h)
  else:
    h = _embedder(config, params["embed"], x)
  if config.sinusoidal:
    where = sinusoids(position, config.hidden)
  else:
    where = jnp.take(params["position"], position, axis=0, mode="clip")
  return h + (where[None] if where.ndim == 2 else where)


def sinusoids(position: Int[Array, "*any"], width: int) -> Float[Array, "*any d"]:
  """sin(position / 10000^(2 i / d)) at 2 i and its cosine at 2 i + 1."""
  rate = jnp.exp(jnp.arange(0, width, 2, dtype=jnp.float32) * (-math.log(10000.0) / width))
  angle = position[..., None].astype(jnp.float32) * rate.reshape((1,) * position.ndim + (-1,))
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*position.shape, width)


def qkv(config: InContextConfig, layer: Params, h: Float[Array, "B L d"]):
  """Queries, keys and values [B * heads, L, d / heads]."""
  b, size, _ = h.shape
  x = affine(norm(h, layer["norm1"]), layer["qkv"], layer["qkv_bias"])
  x = x.reshape(b, size, 3, config.heads, -1)
  return tuple(
    x[:, :, i].transpose(0, 2, 1, 3).reshape(b * config.heads, size, -1) for i in range(3)
  )


def after_attention(config: InContextConfig, layer: Params, h, mixed) -> Float[Array, "B L d"]:
  b, size, _ = h.shape
  x = mixed.reshape(b, config.heads, size, -1).transpose(0, 2, 1, 3).reshape(h.shape)
  x = affine(x, layer["proj"], layer["proj_bias"])
  return h + (norm(x, layer["attention_norm"]) if config.attention_norm else x)


def feed_forward(config: InContextConfig, layer: Params, u) -> Float[Array, "B L d"]:
  x = activation(config)(affine(u, layer["up"], layer["up_bias"]))
  return affine(x, layer["down"], layer["down_bias"])


def outputs_of(params: Params, h) -> Array:
  return affine(norm(h, params["norm"]), params["head"]["w"], params["head"]["b"])
