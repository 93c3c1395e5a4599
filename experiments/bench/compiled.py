"""FLOPs of a compiled gradient step with shared and repeated prompts, and what they consist of.

The formula of paper 59 (work.py) counts the (query, key) pairs that are visible, and as much again
twice for the backward pass. XLA counts what its program does, masked pairs included. On a CPU:

  matrices  6 FLOPs an entry and position: as the formula
  logits    of G T predictions in both forms; the formula has 1 + G (T - 1) in the shared one, where
            the first token of all completions has the same logits
  pairs     of the prompt: its queries go in blocks of max(128, P / 8), each over the keys up to its
            end, so half a block a query is masked; of a completion with itself: all (T - 1)^2; of a
            completion with the prompt: none too many
  a pair    16 FLOPs a head dimension instead of 12, because the backward pass computes the scores
            and their product with the values again, and some twenty more for mask, scale, maximum,
            exponential and sums, which do not shrink with the head dimension

`explained` adds these up; norms, rotations and activations (some 250 FLOPs a hidden unit and
position) and the softmax over the vocabulary are left out.
"""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.bench import work
from grpo_jax import methods
from grpo_jax.models import decoder, policy
from grpo_jax.models.config import ModelConfig

_BESIDE = 20  # element-wise FLOPs a pair and head
_BLOCK, _MOST_BLOCKS = 128, 8  # of a prompt's queries: pallas_kernels/prefix_attention/xla.py


def config_of(s: work.Shape, positions: int) -> ModelConfig:
  return ModelConfig(
    vocab_size=s.vocab,
    hidden_size=s.hidden,
    intermediate_size=s.ffn,
    num_layers=s.layers,
    num_heads=s.heads,
    num_kv_heads=s.kv_heads,
    head_dim=s.head_dim,
    max_position=positions,
    tie_embeddings=s == work.SMOLLM2,
  )


def gradient(config, chunk: int = 256, pieces: int = 1):
  """(params, rollouts, batch) -> (loss, gradients), compiled.

  pieces: the rows of the batch in so many parts one after the other, each forward and backward, the
  gradients summed. That is exact, because losses are sums of weighted terms, and nothing is
  computed twice; every part needs its own prompts, so G must be 1.
  """
  method, forward = methods.get("grpo"), policy.make_forward(config, chunk=chunk)

  def loss(params, batch, credit):
    return method.loss(forward(params, batch), batch, credit)[0]

  def step(params, rollouts, batch):
    credit = method.credit((), rollouts, batch)
    if pieces == 1:
      return jax.value_and_grad(loss)(params, batch, credit)
    parts = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), (batch, credit))
    add = lambda total, part: (
      jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)),
      None,
    )
    zero = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zero, parts)[0]

  return jax.jit(step)


def flops(s: work.Shape, prompt, new, rollouts, forms) -> list[float]:
  """The compiler's own count of FLOPs of both forms, of one layer and unchunked logits: the count
  takes the body of a loop once, however often it runs."""
  config = config_of(dataclasses.replace(s, layers=1), prompt + new)
  config = dataclasses.replace(config, tie_embeddings=False)
  params = jax.eval_shape(lambda key: decoder.init(config, key), jax.random.key(0))
  step = gradient(config, chunk=0)
  return [
    step.lower(params, rollouts, batch).compile().cost_analysis()["flops"]  # pyright: ignore[reportOptionalSubscript]
    for batch in forms
  ]


def explained(s: work.Shape, prompt: int, new: int, group: int, repeated: bool) -> dict:
  """FLOPs of one layer and the logits by the list above, and the pairs made over those visible."""
  n, g = (group, 1) if repeated else (1, group)
  block = max(_BLOCK, -(-prompt // _MOST_BLOCKS))
  ends = [(first, min(first + block, prompt)) for first in range(0, prompt, block)]
  made = sum((end - first) * end for first, end in ends) * n
  made += group * (new - 1) * (prompt + new - 1)
  matrices = 6.0 * s.layer_params * work.positions(n, g, prompt, new)
  logits = 6.0 * s.hidden * s.vocab * group * new
  pairs = made * s.heads * (16.0 * s.head_dim + _BESIDE)
  return {
    "flops": matrices + logits + pairs,
    "matrices": matrices,
    "logits": logits,
    "pairs": pairs,
    "pairs_made_over_visible": made / work.pairs(n, g, prompt, new),
  }
