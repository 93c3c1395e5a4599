"""Attention over a prompt that a group of completions shares (card 59, Prefix Grouper).

`prefix_attention` is the form used in scoring and training, `decode_attention` the one used while
sampling. `implementation` forces one by name; the default takes the first that supports the input.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.prefix_attention import reference, xla
from pallas_kernels.prefix_attention.xla import decode_attention, prompt_attention

IMPLEMENTATIONS = ("xla", "reference")

__all__ = ["IMPLEMENTATIONS", "decode_attention", "prefix_attention", "prompt_attention"]


def prefix_attention(
  q: Float[Array, "N S H d"],
  k: Float[Array, "N S K d"],
  v: Float[Array, "N S K d"],
  prefix_length: Int[Array, " N"],
  *,
  num_prefix: int,
  group: int,
  implementation: str | None = None,
) -> Float[Array, "N S H d"]:
  """Attention of rows [prompt padded to num_prefix; G completions of T], S = num_prefix + G * T.

  Prompt tokens are causal among themselves; a completion's token sees the whole prompt and its
  own past. Softmax and sums in float32. Gradients flow to the shared keys and values, summed over
  the group. Padded prompt keys are never read, whatever they hold. T = 0 is plain causal
  attention. Outputs at padded prompt positions are finite and meaningless.
  """
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(f"implementation={implementation!r}: choose one of {IMPLEMENTATIONS}")
  if implementation == "reference":
    return reference.prefix_attention(q, k, v, prefix_length, num_prefix=num_prefix, group=group)
  n, s, h, d = q.shape
  t = (s - num_prefix) // group
  p = num_prefix
  out = xla.prompt_attention(q[:, :p], k[:, :p], v[:, :p], prefix_length)
  if not t:
    return out
  own = (a[:, p:].reshape(n, group, t, a.shape[2], d) for a in (q, k, v))
  q_own, k_own, v_own = own
  suffix = xla.completion_attention(q_own, k[:, :p], v[:, :p], prefix_length, k_own, v_own)
  return jnp.concatenate([out, suffix.reshape(n, group * t, h, d)], axis=1)
