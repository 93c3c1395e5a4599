"""The repeated form in float64, written apart from models/ and kernels: every completion a row of
its own behind a copy of its prompt, dense causal attention, one loop over layers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def repeated(config, params, batch, credit) -> dict[str, np.ndarray | dict]:
  """{"logp" f64[R, T], "entropy" f64[R, T], "gradient"} of GRPO's loss at ratio 1, 0 where nothing
  was sampled; `batch` with padded rows, R / N of them behind every prompt."""
  ids, length = (np.asarray(x) for x in (batch.prompt_tokens, batch.prompt_length))
  tokens, mask = (np.asarray(x) for x in (batch.tokens, batch.mask))
  per = len(tokens) // len(ids)
  rows = np.zeros((len(tokens), ids.shape[1] + tokens.shape[1]), np.int32)
  for r, row in enumerate(rows):
    n, size = r // per, int(length[r // per])
    row[:size], row[size : size + tokens.shape[1]] = ids[n, :size], tokens[r]
  at = np.repeat(length, per)[:, None] - 1 + np.arange(tokens.shape[1])
  pull = np.asarray(credit.weight, np.float64) * np.asarray(credit.adv, np.float64)
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
    found = _run(config, wide, rows, at, tokens, mask.astype(np.float64), pull)
    return jax.tree.map(np.asarray, found)


@functools.partial(jax.jit, static_argnums=0)
def _run(config, params, rows, at, tokens, mask, pull):
  def loss(params):
    x = jax.vmap(lambda ids, at: _hidden(config, params, ids)[at])(rows, at)
    every = jax.nn.log_softmax(x @ params["head"].T)
    logp = mask * jnp.take_along_axis(every, tokens[..., None], axis=2)[..., 0]
    entropy = -mask * jnp.sum(jnp.exp(every) * every, axis=2)
    return -jnp.sum(pull * logp), (logp, entropy)  # d ratio = d logp where the ratio is 1

  (_, (logp, entropy)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
  return {"logp": logp, "entropy": entropy, "gradient": gradient}


def _norm(x, scale, eps):
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale[None]


def _hidden(c, params, ids):
  """f64[S, D] of one row i[S]."""
  s, half = ids.shape[0], c.head_dim // 2
  turn = c.rope_theta ** (-jnp.arange(half) / half)
  angle = (jnp.arange(s)[:, None] * turn[None])[:, None]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  place = lambda a, b: jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  rotate = lambda x: place(x[..., :half], x[..., half:])
  share = c.num_heads // c.num_kv_heads
  future = jnp.triu(jnp.ones((s, s), bool), 1)[None]
  x = params["embed"][ids]
  for i in range(c.num_layers):
    w = {name: leaf[i] for name, leaf in params["layers"].items()}
    y = _norm(x, w["attn_norm"], c.norm_eps)
    q, k, v = ((y @ w[name]).reshape(s, -1, c.head_dim) for name in "qkv")
    q, k = rotate(q), rotate(k)
    k, v = (jnp.repeat(a, share, axis=1) for a in (k, v))
    score = jnp.einsum("ihd,jhd->hij", q, k) / c.head_dim**0.5
    weight = jax.nn.softmax(jnp.where(future, -jnp.inf, score))
    x = x + jnp.einsum("hij,jhd->ihd", weight, v).reshape(s, -1) @ w["o"]
    y = _norm(x, w["mlp_norm"], c.norm_eps)
    x = x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
  return _norm(x, params["norm"], c.norm_eps)
