"""Tiny decoders, ragged prompts, and the decoder written again as float64 numpy loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models import decoder
from grpo_jax.models.config import ModelConfig
from grpo_jax.types import Batch

_BASE = {
  "vocab_size": 37,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_layers": 2,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_dim": 6,
  "max_position": 64,
}
FAMILIES = {
  "llama": ModelConfig(**_BASE),
  "tied": ModelConfig(**_BASE, tie_embeddings=True, rope_theta=5e5),
  "qwen2": ModelConfig(**_BASE, qkv_bias=True),
  "qwen3": ModelConfig(**_BASE, qk_norm=True, tie_embeddings=True),
}


@functools.cache
def params_of(config: ModelConfig, seed: int = 0):
  """Random parameters with logits of a few nats: at the initial scale every token is as likely."""
  rng = np.random.default_rng(seed)

  def scramble(path, x):
    name = path[-1].key
    if "norm" in name:
      return x + 0.3 * rng.normal(size=x.shape).astype(np.float32)
    if "bias" in name:
      return x + rng.normal(size=x.shape).astype(np.float32)
    return x * 20 if name in ("embed", "head") else x * 1.5

  params = decoder.init(config, jax.random.key(seed))
  return jax.tree_util.tree_map_with_path(scramble, params)


def problem(config: ModelConfig, seed=0, lengths=(5, 1, 8), width=8, group=3, tokens=4):
  """prompt [N, P] with random ids in the padding, length [N], tokens [N, G, T]."""
  rng = np.random.default_rng(seed)
  prompt = rng.integers(0, config.vocab_size, (len(lengths), width)).astype(np.int32)
  own = rng.integers(0, config.vocab_size, (len(lengths), group, tokens)).astype(np.int32)
  return prompt, np.asarray(lengths, np.int32), own


def batch_of(prompt, length, tokens, mask=None) -> Batch:
  """Rows n * G + g, one unit a row; `mask` [N, G, T], default all ones."""
  n, g, t = tokens.shape
  mask = np.ones(tokens.shape) if mask is None else mask
  return Batch(
    tokens=jnp.asarray(tokens.reshape(n * g, t)),
    mask=jnp.asarray(mask.reshape(n * g, t), jnp.float32),
    unit=jnp.zeros((n * g, t), jnp.int32),
    unit_mask=jnp.ones((n * g, 1), jnp.float32),
    owner=jnp.arange(n * g, dtype=jnp.int32)[:, None],
    prompt_tokens=jnp.asarray(prompt),
    prompt_length=jnp.asarray(length),
  )


# ---- the decoder in numpy -----------------------------------------------------------------------


def _norm(x, scale, eps):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def _rotate(x, theta):
  """x [S, H, d]: dimensions j and j + d/2 are one complex number, turned by s * theta^(-2j/d)."""
  half = x.shape[-1] // 2
  angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
  z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
  return np.concatenate([z.real, z.imag], -1)


def _attend(q, k, v):
  """q [S, H, d], k and v [S, K, d]; one query and head at a time."""
  share = q.shape[1] // k.shape[1]
  out = np.zeros(q.shape)
  for s in range(q.shape[0]):
    for h in range(q.shape[1]):
      score = k[: s + 1, h // share] @ q[s, h] / np.sqrt(q.shape[-1])
      p = np.exp(score - score.max())
      out[s, h] = p @ v[: s + 1, h // share] / p.sum()
  return out


def naive_logits(c: ModelConfig, params, ids) -> np.ndarray:
  """Next-token logits [S, V] of one row without padding."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = p["embed"][np.asarray(ids)]
  for i in range(c.num_layers):
    w = {name: value[i] for name, value in p["layers"].items()}
    y = _norm(x, w["attn_norm"], c.norm_eps)
    q, k, v = (y @ w[n] + w.get(f"{n}_bias", 0.0) for n in "qkv")
    q, k, v = (a.reshape(len(x), -1, c.head_dim) for a in (q, k, v))
    if c.qk_norm:
      q, k = _norm(q, w["q_norm"], c.norm_eps), _norm(k, w["k_norm"], c.norm_eps)
    mixed = _attend(_rotate(q, c.rope_theta), _rotate(k, c.rope_theta), v)
    x = x + mixed.reshape(len(x), -1) @ w["o"]
    y = _norm(x, w["mlp_norm"], c.norm_eps)
    gate = y @ w["gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (y @ w["up"])) @ w["down"]
  return _norm(x, p["norm"], c.norm_eps) @ p.get("head", p["embed"]).T


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def naive_logp(c: ModelConfig, params, prompt, completion, temperature=1.0) -> np.ndarray:
  """log-probabilities [T, V] before each token of `completion`, given an unpadded prompt."""
  ids = np.concatenate([prompt, completion[:-1]])
  return log_softmax(naive_logits(c, params, ids)[len(prompt) - 1 :] / temperature)
