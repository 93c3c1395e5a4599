"""Attention over a prompt that a group of completions shares (paper 59, Prefix Grouper).

`prefix_attention` is the form used in scoring and training, `prompt_attention` the same without
completions, `decode_attention` the one used while sampling. Each takes `implementation`: a name of
`IMPLEMENTATIONS`, or None for the first that accepts the input on this backend.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.prefix_attention import reference, xla


def _kernel(module: str, name: str) -> Callable[..., Array]:
  """`name` of a module that is imported at the first call: Pallas is not needed elsewhere."""

  def call(*args, **kwargs):
    path = f"{__name__}.{module}"
    if importlib.util.find_spec(path) is None:
      raise NotImplementedError(f"there is no {path}")
    function = getattr(importlib.import_module(path), name, None)
    if function is None:
      raise NotImplementedError(f"{path} has no {name}")
    return function(*args, **kwargs)

  return call


def _table(name: str) -> dict[str, Callable[..., Array]]:
  tpu, gpu = (_kernel(module, name) for module in ("tpu", "gpu"))
  return {
    "reference": getattr(reference, name),
    "xla": getattr(xla, name),
    "tpu": tpu,
    "gpu": gpu,
    "tpu_interpret": functools.partial(tpu, interpret=True),
    "gpu_interpret": functools.partial(gpu, interpret=True),
  }


# All entries of a table have the signature of the function of that name in reference.py.
_PREFIX = _table("prefix_attention")
_DECODE = _table("decode_attention")
IMPLEMENTATIONS = tuple(_PREFIX)

__all__ = ["IMPLEMENTATIONS", "decode_attention", "prefix_attention", "prompt_attention"]


def _check(softcap: float | None, window: int | None = None) -> None:
  if window is not None and window < 1:
    raise ValueError(f"window={window}: must be at least 1, a token sees itself")
  if softcap is not None and not softcap > 0:
    raise ValueError(f"softcap={softcap}: must be above 0")


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
  window: int | None = None,
  softcap: float | None = None,
  sink: bool = False,
  implementation: str | None = None,
  blocks: object = None,
) -> Float[Array, "N S H d"]:
  """Attention of rows [prompt padded to num_prefix; completions], S = num_prefix + X.

  Prompt tokens are causal among themselves; a completion's token sees the whole prompt and its
  own past. The X = G * T completion tokens are `group` completions of T, or, if `segment` is given
  (then group = 1), completions of any lengths told apart by their ids: the tokens of one are
  adjacent, and an id below 0 is padding. `trunk`: keys and values of a text that all N prompts
  begin with, seen by every query.

  window: a query sees the latest `window` positions only, its own included. The prompt's token j
  has position j, counted from the trunk's start, and the token t of a completion has
  prefix_length + t. softcap: scores s = q k / sqrt(d) become softcap * tanh(s / softcap).
  sink: every query also sees a key and a value of 0, that is softmax plus one (paper 44,
  e^s / (1 + sum e^s)). A learned sink is a `trunk` of one key that no rotation has touched.

  Softmax and sums in float32. Gradients flow to the shared keys and values, summed over the group
  and, for the trunk, over prompts. Padding (the prompt beyond prefix_length, segment < 0) is never
  read, whatever it holds; its gradients are 0 and its outputs are 0. X = 0 is plain causal
  attention. blocks: block sizes for the kernel that `implementation` names (tpu.Blocks,
  gpu.Blocks); others ignore them.

  Raises ValueError for bad options, and NotImplementedError if a named kernel refuses the input.
  """
  if segment is not None and group != 1:
    raise ValueError(f"group={group}: must be 1 where `segment` tells the completions apart")
  if (q.shape[1] - num_prefix) % group:
    raise ValueError(f"group={group}: does not divide X = {q.shape[1] - num_prefix}")
  _check(softcap, window)
  if trunk is not None:
    shared = (jnp.broadcast_to(a[None], (q.shape[0], *a.shape)) for a in trunk)
    k, v = (jnp.concatenate(pair, axis=1) for pair in zip(shared, (k, v), strict=True))
    prefix_length = prefix_length + trunk[0].shape[0]
  return dispatch.run(
    _PREFIX, implementation, q, k, v, prefix_length, num_prefix=num_prefix, group=group,
    segment=segment, window=window, softcap=softcap, sink=sink, blocks=blocks,
  )  # fmt: skip


def prompt_attention(
  q: Float[Array, "N P H d"],
  k: Float[Array, "N M K d"],
  v: Float[Array, "N M K d"],
  key_length: Int[Array, " N"],
  *,
  window: int | None = None,
  softcap: float | None = None,
  sink: bool = False,
  implementation: str | None = None,
  blocks: object = None,
) -> Float[Array, "N P H d"]:
  """Causal attention of prompts padded on the right, the last P of their M >= P keys being own.

  `prefix_attention` without completions; `key_length` counts the M - P keys before the prompt too.
  """
  _check(softcap, window)
  return dispatch.run(
    _PREFIX, implementation, q, k, v, key_length, num_prefix=q.shape[1],
    window=window, softcap=softcap, sink=sink, blocks=blocks,
  )  # fmt: skip


def decode_attention(
  q: Float[Array, "N S H d"] | Float[Array, "N S Q H d"],
  k_prefix: Float[Array, "N K P d"],
  v_prefix: Float[Array, "N K P d"],
  prefix_length: Int[Array, " N"],
  k: Float[Array, "N K S C d"],
  v: Float[Array, "N K S C d"],
  visible: Bool[Array, "N S C"] | Bool[Array, "N S Q C"],
  *,
  softcap: float | None = None,
  sink: bool = False,
  implementation: str | None = None,
  blocks: object = None,
) -> Float[Array, "N S H d"] | Float[Array, "N S Q H d"]:
  """One query a slot, or a few: S slots share a prompt, and each has C cached columns of its own.

  A query sees the prompt's keys below prefix_length and the columns of its slot where `visible`,
  in one softmax; options as for `prefix_attention` (a window is a matter of `visible` as long as
  it covers the prompt). The kernels read the prompt's cache once for all slots. No gradient is
  needed, and the kernels have none.

  Padded prompt keys and invisible columns must hold finite numbers (a cache starts as zeros).
  """
  _check(softcap)
  one = q.ndim == 4
  if one:
    q, visible = q[:, :, None], visible[:, :, None]
  out = dispatch.run(
    _DECODE, implementation, q, k_prefix, v_prefix, prefix_length, k, v, visible,
    softcap=softcap, sink=sink, blocks=blocks,
  )  # fmt: skip
  return out[:, :, 0] if one else out
