"""What both kernels compute about a token, and how its gradient follows from it.

Of logits z = h W^T / temperature a pass over (a part of) the vocabulary keeps four numbers a token:
top m = max z, total s = sum exp(z - m), spread t = sum exp(z - m) (z - m), and the logit picked.
Then log Z = m + log s, log p = picked - log Z, entropy = log s - t / s.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LOW = -1e30  # finite: LOW - LOW is 0, and exp(LOW - top) is 0


class TokenLogprob(NamedTuple):
  logp: Float[Array, " X"]
  entropy: Float[Array, " X"]
  lse: Float[Array, " X"]  # log-sum-exp of the logits, divided by the temperature


def update(pieces, z, is_target, axis: int):
  """The four numbers after the logits of one more block, whose vocabulary runs along `axis`."""
  top, total, spread, picked = pieces
  high = jnp.maximum(top, jnp.max(z, axis=axis, keepdims=True))
  fall = top - high
  keep = jnp.exp(fall)
  shifted = z - high
  weight = jnp.exp(shifted)
  spread = keep * (spread + fall * total) + jnp.sum(weight * shifted, axis=axis, keepdims=True)
  total = keep * total + jnp.sum(weight, axis=axis, keepdims=True)
  picked = picked + jnp.sum(jnp.where(is_target, z, 0), axis=axis, keepdims=True)
  return high, total, spread, picked


class Saved(NamedTuple):
  """For the backward pass. log Z is not kept as one number: with logits of 1e4, its rounding would
  be an error of 1e-3 in every probability."""

  top: Float[Array, " X"]
  log_total: Float[Array, " X"]
  entropy: Float[Array, " X"]


def finish(pieces: Float[Array, "S 4 X"]) -> tuple[TokenLogprob, Saved]:
  """Joins the S parts of the vocabulary. A part that saw none of it has top LOW and total 0."""
  top, total, spread, picked = pieces.swapaxes(0, 1)
  high = jnp.max(top, axis=0)
  fall = top - high[None]
  keep = jnp.exp(fall)
  spread = jnp.sum(keep * (spread + fall * total), axis=0)
  total = jnp.sum(keep * total, axis=0)
  log_total = jnp.log(total)
  entropy = log_total - spread / total
  logp = jnp.sum(picked, axis=0) - high - log_total
  return TokenLogprob(logp, entropy, high + log_total), Saved(high, log_total, entropy)


def weights(
  target: Int[Array, " X"], saved: Saved, cotangent: TokenLogprob
) -> tuple[Float[Array, "6 X"], Array]:
  """Arguments of `gradient`, top to c, exact for targets below 2^24; and which tokens have any
  cotangent."""
  a, h, s = cotangent
  used = (a != 0) | (h != 0) | (s != 0)
  b = jnp.where(used, s - a - h * saved.entropy, 0)
  return jnp.stack([saved.top, saved.log_total, target.astype(jnp.float32), a, b, h]), used


def gradient(z, entry, top, log_total, target, a, b, c):
  """d(loss)/dz: d logp = onehot - p, d entropy = -p (z - lse + entropy), d lse = p."""
  shifted = z - top - log_total
  onehot = jnp.where(entry == target.astype(jnp.int32), a, 0)
  return jnp.exp(shifted) * (b - c * shifted) + onehot


def used_blocks(used: Bool[Array, " X"], size: int) -> Int[Array, " B"]:
  """1 for the blocks of `size` tokens that have a cotangent other than 0."""
  used = jnp.pad(used, (0, -used.shape[0] % size))
  return jnp.any(used.reshape(-1, size), axis=1).astype(jnp.int32)


def common_dtype(hidden: Array, head: Array):
  """The dtype of the matrix products, or a refusal."""
  for name, x in (("hidden", hidden), ("head", head)):
    if x.dtype not in (jnp.bfloat16, jnp.float32):
      raise NotImplementedError(f"{name}: {x.dtype} is not bfloat16 or float32")
  if head.shape[0] >= 2**24:
    raise NotImplementedError(f"vocabulary {head.shape[0]}: must be below 2^24")
  return jnp.bfloat16 if hidden.dtype == head.dtype == jnp.bfloat16 else jnp.float32


def exact() -> bool:
  """Whether products of float32 shall be better than the device's quickest, as elsewhere in jax:
  `jax_default_matmul_precision` says it, and unset means no."""
  return str(getattr(jax.config, "jax_default_matmul_precision", None)).lower() in (
    "high", "highest", "float32", "bfloat16_3x", "tensorfloat32", "tf32_tf32_f32_x3", "f32_f32_f32",
  )  # fmt: skip
