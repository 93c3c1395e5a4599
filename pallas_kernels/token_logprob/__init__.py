"""Log-probability of a token, entropy and log Z, from hidden states and the output matrix.

The [X, V] table of logits is never kept: "xla" forms it for one chunk of tokens at a time, the
Pallas kernels for a block of tokens and vocabulary, in the forward and again in the backward pass.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.token_logprob import gpu, sharded, tpu, xla
from pallas_kernels.token_logprob.pieces import TokenLogprob
from pallas_kernels.token_logprob.reference import token_logprob as reference
from pallas_kernels.token_logprob.xla import from_logits

__all__ = ["TABLE", "TokenLogprob", "from_logits", "reference", "token_logprob",
           "token_logprob_sharded"]  # fmt: skip


def _reference(hidden, head, target, temperature, *, chunk, strided):
  del chunk, strided
  return TokenLogprob(*reference(hidden, head, target, temperature))


TABLE = {
  "reference": _reference,
  "xla": xla.token_logprob,
  "tpu": tpu.token_logprob,
  "gpu": gpu.token_logprob,
  "tpu_interpret": functools.partial(tpu.token_logprob, interpret=True),
  "gpu_interpret": functools.partial(gpu.token_logprob, interpret=True),
}


def token_logprob(
  hidden: Float[Array, "X D"],
  head: Float[Array, "V D"],
  target: Int[Array, " X"],
  temperature: float | Float[Array, ""] = 1.0,
  *,
  chunk: int = 256,
  strided: bool = False,
  implementation: str | None = None,
) -> TokenLogprob:
  """log softmax(h W^T / temperature)[target], its entropy and log Z, each [X] in float32.

  All three are differentiable in `hidden` and `head`: d logp = onehot - p, d entropy =
  -p (log p + entropy), d lse = p, times d z. `temperature`, also a traced one, is a constant: its
  gradient is 0 by definition. Unused outputs cost nothing that is worth counting.

  "xla": `chunk` tokens at a time, recomputed in the backward pass; chunk = 0 keeps all logits (less
  arithmetic, memory X * V). `strided`: piece j takes the tokens j, j + pieces, ..., so that tokens
  which devices hold in blocks give every device its share of every piece; it costs copies of
  `hidden`, so only for tokens that are split over devices under `jit`.
  Kernels: hidden and head in bfloat16 or float32. With bfloat16 the gradient of the logits is
  rounded to it before its products; sums are float32. Products of float32 are as exact as
  `jax_default_matmul_precision` asks. Blocks of tokens without any cotangent are skipped in the
  backward pass. A compiler cannot split a kernel, so they refuse `strided`, and over devices they
  run inside `jax.shard_map(..., check_vma=False)`.
  """
  temperature = jax.lax.stop_gradient(jnp.asarray(temperature, jnp.float32))
  args = hidden, head, target, temperature
  return dispatch.run(TABLE, implementation, *args, chunk=chunk, strided=strided)


def token_logprob_sharded(
  hidden: Float[Array, "X D"],
  head: Float[Array, "Vn D"],
  target: Int[Array, " X"],
  temperature: float | Float[Array, ""] = 1.0,
  *,
  axis_name: str,
  chunk: int = 256,
  implementation: str | None = None,
) -> TokenLogprob:
  """`token_logprob` inside `jax.shard_map`, for a vocabulary split over `axis_name`.

  Device i of the axis holds rows i V/n ... (i+1) V/n of the output matrix; `hidden` and `target`
  are the same on all of them, as are the results. One all-gather of [3, X] joins the parts. The
  gradient of `head` is local to the device; that of `hidden` is summed over the axis by `shard_map`
  itself. Differentiate around `shard_map` (with or without check_vma; kernels need
  check_vma=False), or, only with check_vma=True, inside it.
  """

  def local(hidden, head, target):
    return token_logprob(
      hidden, head, target, temperature, chunk=chunk, implementation=implementation
    )

  return sharded.join(local, hidden, head, target, axis_name)
