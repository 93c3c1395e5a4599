"""One decoder for the Llama family (SmolLM2, Llama 3.x, Qwen2.5, Qwen3), as pure functions.

Inside, Flax NNX modules; outside, `f(config, params, ...)` on a nested dict of arrays (its shape is
in `config.py`). Layers are stacked on a leading axis and scanned. The native layout is the shared
prompt: [N, P] prompts and [N, G, T] completions, every prompt computed once a group.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from grpo_jax.models import on_mesh
from grpo_jax.models.config import ModelConfig
from pallas_kernels import prefix_attention as attention

Params = dict[str, Any]


# ---- modules ------------------------------------------------------------------------------------


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
  """x / sqrt(mean(x^2) + eps) * scale, in float32."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def rope_frequencies(c: ModelConfig) -> Float[Array, " half"]:
  """Rotary frequencies; with Llama 3.1's scaling long wavelengths are divided by `factor`."""
  freq = 1.0 / c.rope_theta ** (jnp.arange(0, c.head_dim, 2, dtype=jnp.float32) / c.head_dim)
  if c.rope_scaling is None:
    return freq
  s = c.rope_scaling
  turns = s.original_max_position * freq / (2 * math.pi)  # within the original context
  smooth = jnp.clip(
    (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0
  )
  return freq * (smooth + (1 - smooth) / s.factor)


def rotate(x: Float[Array, "... X H d"], position: Int[Array, "... X"], freq: Array) -> Array:
  """Rotary embedding in the rotate-half convention; angles in float32."""
  freq = freq.reshape((1,) * (position.ndim + 1) + (-1,))
  angle = position.astype(jnp.float32)[..., None, None] * freq
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _normal(key, shape, fan_in):
  return nnx.Param(jax.random.normal(key, shape, jnp.float32) * fan_in**-0.5)


@jax.custom_vjp
def linear(x: Float[Array, "... A"], w: Float[Array, "A B"]) -> Float[Array, "... B"]:
  """x @ w.

  Its backward pass differs from the automatic one in order only: the product for dw transposes the
  narrower of its operands. XLA fuses element-wise work into a transposed operand; for the wide one
  of an MLP that costs more than the product itself (CPU, 25 ms against 6 at 1136 x 256 x 1024).
  """
  return x @ w


def _linear_forward(x, w):
  return x @ w, (x, w)


def _linear_backward(saved, ct):
  x, w = saved
  dx = jnp.einsum("...b,ab->...a", ct, w)
  rows = (((0,), (0,)), ((), ()))
  x, ct = x.reshape(-1, x.shape[-1]), ct.reshape(-1, ct.shape[-1])
  if x.shape[1] <= ct.shape[1]:
    return dx, jax.lax.dot_general(x, ct, rows)
  return dx, jax.lax.dot_general(ct, x, rows).T


linear.defvjp(_linear_forward, _linear_backward)


class Block(nnx.Module):
  """Attention and gated MLP, both with a pre-norm and a residual."""

  def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
    self.config = c
    d, f, hd = c.hidden_size, c.intermediate_size, c.head_dim
    q, kv = c.num_heads * hd, c.num_kv_heads * hd
    self.attn_norm = nnx.Param(jnp.ones(d))
    self.q = _normal(rngs.params(), (d, q), d)
    self.k = _normal(rngs.params(), (d, kv), d)
    self.v = _normal(rngs.params(), (d, kv), d)
    self.o = _normal(rngs.params(), (q, d), q)
    if c.qkv_bias:
      self.q_bias = nnx.Param(jnp.zeros(q))
      self.k_bias = nnx.Param(jnp.zeros(kv))
      self.v_bias = nnx.Param(jnp.zeros(kv))
    if c.qk_norm:
      self.q_norm = nnx.Param(jnp.ones(hd))
      self.k_norm = nnx.Param(jnp.ones(hd))
    self.mlp_norm = nnx.Param(jnp.ones(d))
    self.gate = _normal(rngs.params(), (d, f), d)
    self.up = _normal(rngs.params(), (d, f), d)
    self.down = _normal(rngs.params(), (f, d), f)

  def qkv(self, x: Float[Array, "... D"], position: Int[Array, "..."]):
    """Queries [..., H, d], keys and values [..., K, d], rotated."""
    c = self.config
    y = rms_norm(x, self.attn_norm[...], c.norm_eps)
    q, k, v = (linear(y, w[...]) for w in (self.q, self.k, self.v))
    if c.qkv_bias:
      lead = (1,) * (x.ndim - 1) + (-1,)
      q, k, v = (
        a + b[...].reshape(lead) for a, b in ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias))
      )
    q = q.reshape(*x.shape[:-1], c.num_heads, c.head_dim)
    k, v = (a.reshape(*x.shape[:-1], c.num_kv_heads, c.head_dim) for a in (k, v))
    if c.qk_norm:
      q = rms_norm(q, self.q_norm[...], c.norm_eps)
      k = rms_norm(k, self.k_norm[...], c.norm_eps)
    freq = rope_frequencies(c)
    q, k = rotate(q, position, freq), rotate(k, position, freq)
    return checkpoint_name(q, "q"), checkpoint_name(k, "k"), checkpoint_name(v, "v")

  def __call__(self, x, position, attend: Callable):
    """x [..., D]; `attend(q, k, v)` returns (mixed values [..., H, d], what to keep)."""
    mixed, kept = attend(*self.qkv(x, position))
    mixed = checkpoint_name(mixed, "mixed")
    x = x + linear(mixed.reshape(*x.shape[:-1], -1), self.o[...])
    y = rms_norm(x, self.mlp_norm[...], self.config.norm_eps)
    gate = checkpoint_name(linear(y, self.gate[...]), "gate")
    up = checkpoint_name(linear(y, self.up[...]), "up")
    return x + linear(jax.nn.silu(gate) * up, self.down[...]), kept


class Decoder(nnx.Module):
  def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
    self.embed = nnx.Param(jax.random.normal(rngs.params(), (c.vocab_size, c.hidden_size)) * 0.02)

    @nnx.split_rngs(splits=c.num_layers)
    @nnx.vmap(in_axes=(None, 0), out_axes=0)
    def stack(config, rngs):
      return Block(config, rngs)

    self.layers = stack(c, rngs)
    self.norm = nnx.Param(jnp.ones(c.hidden_size))
    if not c.tie_embeddings:
      self.head = nnx.Param(jax.random.normal(rngs.params(), (c.vocab_size, c.hidden_size)) * 0.02)


# ---- pure functions -----------------------------------------------------------------------------


@functools.lru_cache
def _block(c: ModelConfig):
  return nnx.split(nnx.eval_shape(lambda: Block(c, nnx.Rngs(0))))[0]


def init(config: ModelConfig, key: Array) -> Params:
  """Random float32 parameters."""
  return nnx.to_pure_dict(nnx.split(Decoder(config, nnx.Rngs(params=key)))[1])


def num_params(params: Params) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def output_matrix(params: Params) -> Float[Array, "V D"]:
  return params.get("head", params["embed"])


def block_apply(config: ModelConfig, layer: Params, x: Array, position: Array, attend: Callable):
  """One layer on its own slice of the stacked parameters."""
  return nnx.merge(_block(config), layer)(x, position, attend)


class PrefixCache(NamedTuple):
  """Keys and values of the shared prompts, stacked over layers."""

  k: Float[Array, "L N P K d"]
  v: Float[Array, "L N P K d"]
  length: Int[Array, " N"]


def embed(params: Params, tokens: Array) -> Array:
  return jnp.take(params["embed"], tokens, axis=0, mode="clip")


def _at_last(x: Float[Array, "N P D"], length: Int[Array, " N"]) -> Float[Array, "N D"]:
  return jnp.take_along_axis(x, (length - 1)[:, None, None], axis=1)[:, 0]


def _own_keys(lengths):
  """Causal attention inside each row, keeping keys and values; of one row, so without a kernel."""

  def attend(q, k, v):
    return attention.prompt_attention(q, k, v, lengths, implementation="xla"), (k, v)

  return attend


_UNROLLED = 4  # so few layers compile faster one by one, and the loop's copies of their weights go
# For the backward pass a layer keeps the results of its matrix products. Norms, activations and
# attention weights are computed again: cheaper than writing and reading them, and flat in S^2.
# The last two names are those of the attention kernels, which then run forward once.
_SAVED = jax.checkpoint_policies.save_only_these_names(
  "q", "k", "v", "mixed", "gate", "up", "prefix_attention_out", "prefix_attention_lse"
)


def run_layers(config, params, x, position, attend, *, trunk=None, remat=False, rows=None):
  """Scans the layers over x [N, S, D]; returns the normed output and what `attend` kept, by layer.

  attend(shared, q, k, v) -> (mixed, kept). `trunk` i32[C] is a text before all rows, computed once:
  `shared` is then its keys and values (C, K, d) in this layer, else None. `remat`: keep only the
  layers' inputs for the backward pass. `rows`: the sharding of N. Without it XLA splits
  activations as it finds the parameters split, and every device works on all rows.
  """
  pin = lambda x: x if rows is None else jax.lax.with_sharding_constraint(x, rows)
  start = None if trunk is None else embed(params, trunk[None])

  def step(carry, layer):
    x, above = pin(carry[0]), carry[1]
    shared = None
    if trunk is not None:
      count = trunk.shape[0]
      where = jnp.arange(count)[None]
      keys = _own_keys(jnp.full((1,), count, jnp.int32))
      above, (k, v) = block_apply(config, layer, above, where, keys)
      shared = k[0], v[0]
    x, kept = block_apply(config, layer, x, position, functools.partial(attend, shared))
    return (x, above), kept

  step = jax.checkpoint(step, policy=None if remat else _SAVED)
  shallow = config.num_layers <= _UNROLLED
  (x, _), kept = jax.lax.scan(step, (x, start), params["layers"], unroll=shallow)
  return rms_norm(pin(x), params["norm"], config.norm_eps), kept


def _size(trunk) -> int:
  return 0 if trunk is None else trunk.shape[0]


def prefill(
  config: ModelConfig,
  params: Params,
  prompt: Int[Array, "N P"],
  length: Int[Array, " N"],
  trunk: Int[Array, " C"] | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, "N D"], PrefixCache]:
  """Prompts padded on the right -> hidden state that predicts the first new token, and the cache of
  the whole prefix, [trunk; prompt]."""
  n, p = prompt.shape
  total = length + _size(trunk)

  def attend(shared, q, k, v):
    if shared is not None:
      k, v = (
        jnp.concatenate([jnp.broadcast_to(a[None], (n, *a.shape)), b], axis=1)
        for a, b in zip(shared, (k, v), strict=True)
      )
    return attention.prompt_attention(q, k, v, total, implementation=implementation), (k, v)

  position = jnp.broadcast_to(jnp.arange(p)[None], prompt.shape) + _size(trunk)
  x, (k, v) = run_layers(config, params, embed(params, prompt), position, attend, trunk=trunk)
  return _at_last(x, length), PrefixCache(k, v, total)


def shared_hidden(
  config: ModelConfig,
  params: Params,
  prompt: Int[Array, "N P"],
  length: Int[Array, " N"],
  tokens: Int[Array, "N G T"],
  *,
  trunk: Int[Array, " C"] | None = None,
  remat: bool = False,
  rows: Sharding | None = None,
  implementation: str | None = None,
) -> Float[Array, "N G T D"]:
  """Hidden states that predict `tokens`: entry [n, g, t] has seen prompt n and tokens[n, g, :t].

  The prompt is computed once a group (paper 59), and `trunk`, a text before all prompts, once.
  Token t = 0 is predicted by the last prompt position, so the last completion token is never an
  input. Equal to G separate rows [trunk; prompt; completion] in values and gradients. Padding needs
  no mask here: a padded token only influences entries after it, which the caller's mask drops.
  """
  n, g, t = tokens.shape
  own = jnp.broadcast_to(jnp.arange(t - 1)[None, None], (n, g, t - 1)).reshape(n, -1)
  ids = tokens[:, :, :-1].reshape(n, -1)
  last, x = _prompt_and_own(
    config, params, prompt, length, ids, own, trunk, remat, rows,
    group=g, implementation=implementation,
  )  # fmt: skip
  first = jnp.broadcast_to(last[:, None, None], (n, g, 1, x.shape[-1]))
  return jnp.concatenate([first, x.reshape(n, g, t - 1, x.shape[-1])], axis=2)


def packed_hidden(
  config: ModelConfig,
  params: Params,
  prompt: Int[Array, "N P"],
  length: Int[Array, " N"],
  tokens: Int[Array, "N T"],
  position: Int[Array, "N T"],
  segment: Int[Array, "N T"],
  *,
  trunk: Int[Array, " C"] | None = None,
  remat: bool = False,
  rows: Sharding | None = None,
  implementation: str | None = None,
) -> Float[Array, "N T D"]:
  """As `shared_hidden` for completions of any lengths packed into one row a prompt.

  position: place of the token inside its completion; segment: which completion. A completion's
  tokens are adjacent, so the state that predicts a token is that of the entry before it, and that
  of the prompt's end where position is 0.
  """
  last, x = _prompt_and_own(
    config, params, prompt, length, tokens, position, trunk, remat, rows,
    segment=segment, implementation=implementation,
  )  # fmt: skip
  before = jnp.concatenate([last[:, None], x[:, :-1]], axis=1)
  return jnp.where((position == 0)[..., None], last[:, None], before)


def _prompt_and_own(
  config, params, prompt, length, ids, own_position, trunk, remat, rows, **layout
) -> tuple[Float[Array, "N D"], Float[Array, "N X D"]]:
  """Hidden states of the prompts' last tokens and of the completion tokens `ids` [N, X]."""
  n, p = prompt.shape
  where = jnp.concatenate(
    [jnp.broadcast_to(jnp.arange(p)[None], (n, p)), length[:, None] + own_position], axis=1
  )

  attention_of = on_mesh.prefix_attention(rows, config.num_kv_heads, layout.get("implementation"))

  def attend(shared, q, k, v):
    return attention_of(q, k, v, length, trunk=shared, num_prefix=p, **layout), None

  x = embed(params, jnp.concatenate([prompt, ids], axis=1))
  x, _ = run_layers(
    config, params, x, where + _size(trunk), attend, trunk=trunk, remat=remat, rows=rows
  )
  return _at_last(x, length), x[:, p:]


def hidden(
  config: ModelConfig,
  params: Params,
  tokens: Int[Array, "B S"],
  lengths: Int[Array, " B"],
  *,
  remat: bool = False,
) -> Float[Array, "B S D"]:
  """Plain causal rows padded on the right: entry [b, s] has seen tokens[b, :s + 1]."""

  def attend(_, q, k, v):
    return attention.prompt_attention(q, k, v, lengths), None

  position = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  return run_layers(config, params, embed(params, tokens), position, attend, remat=remat)[0]


@functools.partial(jax.jit, static_argnums=0)
def logits(
  config: ModelConfig, params: Params, tokens: Int[Array, "B S"], lengths: Int[Array, " B"]
) -> Float[Array, "B S V"]:
  """Next-token logits of rows padded on the right, float32: for tests and small uses."""
  x = hidden(config, params, tokens, lengths)
  return jnp.einsum("bsd,vd->bsv", x, output_matrix(params), preferred_element_type=jnp.float32)
