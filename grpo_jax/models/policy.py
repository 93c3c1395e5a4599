"""From a batch to `Fwd`: the decoder as a policy over completions of shared prompts."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array

from grpo_jax.models import decoder, on_mesh
from grpo_jax.models.config import ModelConfig
from grpo_jax.types import Batch, Fwd

Forward = Callable[..., Fwd]


def init_value_head(config: ModelConfig) -> dict[str, Array]:
  """A linear value head that starts at 0, to be put under params["value"]."""
  return {"w": jnp.zeros((config.hidden_size,)), "b": jnp.zeros(())}


def make_forward(
  config: ModelConfig,
  *,
  temperature: float = 1.0,
  chunk: int = 256,
  remat: bool = False,
  implementation: str | None = None,
  logprob: str | None = None,
  trunk: Sequence[int] = (),
  rows: Sharding | None = None,
) -> Forward:
  """forward(params, batch) -> Fwd with logp, entropy and, if params has a value head, value.

  Log-probabilities are those of log_softmax(z / temperature), the sampler's distribution, by the
  function that the sampler uses. Row r of the batch continues prompt r // (R // N); with
  `batch.segment` row n holds the completions of prompt n one after the other. `chunk` tokens of
  logits exist at a time (0: all at once); `remat` recomputes layers in the backward pass. `trunk`:
  ids that precede every prompt and are not part of it. `rows`: sharding of the batch's rows, kept
  by the activations. `implementation`, `logprob`: of the attention and of the head, by the names in
  pallas_kernels/dispatch.py; None takes what suits the backend.
  """

  def forward(params, batch: Batch) -> Fwd:
    assert batch.prompt_tokens is not None and batch.prompt_length is not None
    n = batch.prompt_tokens.shape[0]
    r, t = batch.tokens.shape
    prompt = batch.prompt_tokens, batch.prompt_length
    shared = {
      "trunk": jnp.asarray(trunk, jnp.int32) if trunk else None,
      "remat": remat,
      "rows": rows,
      "implementation": implementation,
    }
    if batch.segment is None:
      tokens = batch.tokens.reshape(n, r // n, t)
      x = decoder.shared_hidden(config, params, *prompt, tokens, **shared)
    else:
      assert batch.position is not None
      packed = batch.tokens, batch.position, batch.segment
      x = decoder.packed_hidden(config, params, *prompt, *packed, **shared)
    x = x.reshape(r * t, -1)
    head = decoder.output_matrix(params)
    out = on_mesh.token_logprob(rows, chunk, logprob)(
      x, head, batch.tokens.reshape(-1), temperature
    )
    value = None
    if "value" in params:
      value = (x @ params["value"]["w"] + params["value"]["b"]).reshape(r, t)
    # Padded positions hold finite but meaningless numbers: make them plain zeros.
    keep = lambda a: jnp.where(batch.mask > 0, a.reshape(r, t), 0)
    return Fwd(
      logp=keep(out.logp),
      entropy=keep(out.entropy),
      value=None if value is None else keep(value),
    )

  return forward


def make_score(forward: Forward) -> Callable[..., Fwd]:
  """The same pass compiled without a gradient: old, reference and value arrays."""
  return jax.jit(forward)
