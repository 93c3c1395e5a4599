"""Values of all prefixes of one problem under a policy, by summing over every answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.envs.world import STOP, World
from grpo_jax.models import decoder


@functools.partial(jax.jit, static_argnums=(0,))
def _next(config, params, tokens, lengths):
  """Probabilities of the next token, f32[X, V]."""
  x = decoder.hidden(config, params, tokens, lengths)
  last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
  return jax.nn.softmax(last @ decoder.output_matrix(params).T, axis=1)


def values(world: World, config, params, problem) -> list[np.ndarray]:
  """[f64[V^k] for k in 0..T]: the value after each text of k tokens, first token slowest; 0 where
  the text goes on after STOP, and for one of T tokens that does not stop."""
  v, t = world.vocab, world.answer
  size = int(problem.length)
  texts, chances = [np.zeros((1, 0), np.int32)], []
  for k in range(t):
    chances.append(_chances(config, params, np.asarray(problem.tokens)[:size], texts[k], t))
    longer = np.repeat(texts[k], v, axis=0)
    last = np.tile(np.arange(v, dtype=np.int32), len(texts[k]))
    texts.append(np.concatenate([longer, last[:, None]], axis=1))
  value = [_rewards(world, problem, texts[k], t) for k in range(t + 1)]
  for k in reversed(range(t)):
    on = ~np.any(texts[k] == STOP, axis=1)
    after = (chances[k] * value[k + 1].reshape(-1, v)).sum(axis=1)
    value[k] = np.where(on, after, value[k])
  return value


def _chances(config, params, prompt, texts, t: int, chunk: int = 4096):
  out = []
  for i in range(0, len(texts), chunk):
    part = texts[i : i + chunk]
    rows = np.zeros((min(chunk, max(len(texts), 1)), len(prompt) + t - 1), np.int32)
    rows[: len(part), : len(prompt)] = prompt
    rows[: len(part), len(prompt) : len(prompt) + part.shape[1]] = part
    lengths = np.full(len(rows), len(prompt) + part.shape[1], np.int32)
    out.append(np.asarray(_next(config, params, rows, lengths), np.float64)[: len(part)])
  return np.concatenate(out)


def _rewards(world, problem, texts, t: int):
  """Reward of the texts whose last token is their first STOP, else 0."""
  ends = np.zeros(len(texts), bool)
  if texts.shape[1]:
    ends = (texts[:, -1] == STOP) & ~np.any(texts[:, :-1] == STOP, axis=1)
  out = np.zeros(len(texts))
  if ends.any():
    rows = np.zeros((int(ends.sum()), t), np.int32)
    rows[:, : texts.shape[1]] = texts[ends]
    score = jax.vmap(lambda x: world.score(problem, (), x, jnp.int32(texts.shape[1])).reward)
    out[ends] = np.asarray(jax.jit(score)(rows), np.float64)
  return out


def gains(value: list[np.ndarray], tokens: np.ndarray, length: int, vocab: int) -> np.ndarray:
  """What each of the first `length` tokens of a text adds to the value."""
  at, out = 0, np.zeros(length)
  for k in range(length):
    longer = at * vocab + int(tokens[k])
    out[k] = value[k + 1][longer] - value[k][at]
    at = longer
  return out
