"""A language model as a policy over K named choices: softmax of the log-probabilities of the names.

  s_k = sum_t log p(name_k,t | prompt, name_k,<t),   pi(k | prompt) = exp(s_k) / sum_j exp(s_j)

Scoring a closed set of names in place of reading free text is our own choice; every answer is then
valid. In the batches of this module a token is a choice: `Batch.tokens[r, t]` is in 0..K-1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grpo_jax.errors import UserError
from grpo_jax.models import decoder, policy
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.policy import Forward
from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.types import Batch, Fwd


class Names(NamedTuple):
  """Token ids of K names, padded on the right."""

  tokens: np.ndarray  # i32[K, T]
  length: np.ndarray  # i32[K]


def encode(tokenizer: Tokenizer, names: Sequence[str]) -> Names:
  """Names as they stand in a text, each after a space.

  Raises UserError if the ids of one name begin another's: the longer could then never win.
  """
  ids = [tokenizer.backend.encode(f" {name}") for name in names]
  for i, a in enumerate(ids):
    for j, b in enumerate(ids):
      if i != j and b[: len(a)] == a:
        raise UserError(f"names: {names[i]!r} begins {names[j]!r} as tokens; rename one of them")
  width = max(2, *map(len, ids))  # two at least: the shared layout wants a token of its own
  tokens = np.zeros((len(ids), width), np.int32)
  for row, name in zip(tokens, ids, strict=True):
    row[: len(name)] = name
  return Names(tokens, np.asarray([len(i) for i in ids], np.int32))


def log_policy(
  forward: Forward, names: Names, params, prompt: Int[Array, "R P"], length: Int[Array, " R"]
) -> Float[Array, "R K"]:
  """log pi(. | prompt) for prompts padded on the right, by the `forward` of models/policy.py.

  Every prompt is computed once, and its K names after it: the layout [R, P] + [R, K, T].
  """
  rows, (k, t) = prompt.shape[0], names.tokens.shape
  tiled = lambda x: jnp.broadcast_to(jnp.asarray(x)[None], (rows, k, t)).reshape(rows * k, t)
  mask = (np.arange(t) < names.length[:, None]).astype(np.float32)
  batch = Batch(
    tokens=tiled(names.tokens),
    mask=tiled(mask),
    unit=jnp.zeros((rows * k, t), jnp.int32),
    unit_mask=jnp.ones((rows * k, 1)),
    owner=jnp.arange(rows * k)[:, None],
    prompt_tokens=prompt,
    prompt_length=length,
  )
  score = jnp.sum(forward(params, batch).logp.reshape(rows, k, t), axis=-1)
  return jax.nn.log_softmax(score)


def _chosen(log_pi: Float[Array, "R T K"], batch: Batch) -> Fwd:
  logp = jnp.take_along_axis(log_pi, batch.tokens[..., None], axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1)
  keep = lambda x: jnp.where(batch.mask > 0, x, 0)
  return Fwd(logp=keep(logp), entropy=keep(entropy))


def make_forward(config: ModelConfig, names: Names, **options) -> Forward:
  """forward(params, batch) -> Fwd of rows that are one choice each: tokens [R, 1] after
  prompt_tokens [R, P]. `options`: of `policy.make_forward` (trunk, remat, chunk, ...)."""
  inner = policy.make_forward(config, **options)

  def forward(params, batch: Batch) -> Fwd:
    prompt, length = batch.prompt_tokens, batch.prompt_length
    assert prompt is not None and length is not None
    return _chosen(log_policy(inner, names, params, prompt, length)[:, None], batch)

  return forward


def make_transcript_forward(
  config: ModelConfig, names: Names, *, trunk: Sequence[int], remat: bool = False
) -> Forward:
  """forward(params, batch) -> Fwd of rows that are a whole transcript: tokens [R, T] are choices,
  extra["text"] i32[R, S] is what was written after `trunk`, extra["where"] i32[R, T] the entry of
  the text that is choice t's name.

  One causal pass reads all T choices, each given the text before it: the values of `make_forward`
  at T prompts, for the price of the longest. Raises UserError for names of several tokens.
  """
  if names.length.max() > 1:
    raise UserError("names: a transcript wants names of one token; score its choices one by one")
  if not trunk:
    raise UserError("trunk: a transcript wants a text before it")
  first = jnp.asarray(names.tokens[:, 0])
  start = jnp.asarray(trunk, jnp.int32)[None]
  length = jnp.full((1,), len(trunk), jnp.int32)

  def forward(params, batch: Batch) -> Fwd:
    text, where = batch.extra["text"], batch.extra["where"]
    x = decoder.shared_hidden(config, params, start, length, text[None], remat=remat)[0]
    x = jnp.take_along_axis(x, where[..., None], axis=1)
    head = jnp.take(decoder.output_matrix(params), first, axis=0)
    score = jnp.einsum("rtd,kd->rtk", x, head, preferred_element_type=jnp.float32)
    return _chosen(jax.nn.log_softmax(score), batch)

  return forward
