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
  group: int = 1,
  segment: Int[Array, "N X"] | None = None,
  trunk: tuple[Float[Array, "C K d"], Float[Array, "C K d"]] | None = None,
  implementation: str | None = None,
) -> Float[Array, "N S H d"]:
  """Attention of rows [prompt padded to num_prefix; completions], S = num_prefix + X.

  Prompt tokens are causal among themselves; a completion's token sees the whole prompt and its
  own past. The X = G * T completion tokens are `group` completions of T, or, if `segment` is given
  (then group = 1), completions of any lengths told apart by their ids. `trunk`: keys and values of
  a text that all N prompts begin with, seen by every query.

  Softmax and sums in float32. Gradients flow to the shared keys and values, summed over the group
  and, for the trunk, over prompts. Padded prompt keys are never read, whatever they hold. X = 0 is
  plain causal attention. Outputs at padded positions are finite and meaningless.
  """
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(f"implementation={implementation!r}: choose one of {IMPLEMENTATIONS}")
  if segment is not None and group != 1:
    raise ValueError(f"group={group}: must be 1 where `segment` tells the completions apart")
  n, s, h, d = q.shape
  p = num_prefix
  t = (s - p) // group
  if trunk is not None:
    shared = (jnp.broadcast_to(a[None], (n, *a.shape)) for a in trunk)
    k, v = (jnp.concatenate(pair, axis=1) for pair in zip(shared, (k, v), strict=True))
    prefix_length = prefix_length + trunk[0].shape[0]
  m = k.shape[1] - (s - p)  # keys of the whole prefix
  if implementation == "reference":
    return reference.prefix_attention(
      q, k, v, prefix_length, num_prefix=p, group=group, segment=segment
    )
  out = xla.prompt_attention(q[:, :p], k[:, :m], v[:, :m], prefix_length)
  if not t:
    return out
  q_own, k_own, v_own = (
    a[:, a.shape[1] - group * t :].reshape(n, group, t, a.shape[2], d) for a in (q, k, v)
  )
  own_segment = None if segment is None else segment[:, None]
  suffix = xla.completion_attention(
    q_own, k[:, :m], v[:, :m], prefix_length, k_own, v_own, own_segment
  )
  return jnp.concatenate([out, suffix.reshape(n, group * t, h, d)], axis=1)
