"""Every prefix of every answer of a tiny world, and what follows from it: the oracle of trees and
chains. Values are sums over all continuations, in float64 numpy."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import envs
from grpo_jax.envs.world import STOP, Verdict
from grpo_jax.models import decoder
from grpo_jax.train.programs import fused


def dense(problem, state, tokens, length):
  """A reward of almost every answer, in [0, 1]: the worlds' own are 0 nearly everywhere."""
  del state
  place = jnp.arange(tokens.shape[0])
  total = jnp.sum(jnp.where(place < length, (place + 2) * tokens, 0)) + problem.tokens[0]
  reward = (total % 7).astype(jnp.float32) / 6
  return Verdict(reward=reward, correct=reward > 0.5)


@functools.cache
def small():
  """(world, config, params): answers of at most 4 tokens out of 8, a policy far from uniform."""
  world = dataclasses.replace(envs.get("chain", steps=2, modulus=2, slack=0), score=dense, parts=())
  config = fused.tiny_config(world.vocab, hidden=8, layers=1, heads=2)
  params = decoder.init(config, jax.random.key(3))
  params["head"] = params["head"] * 30
  return world, config, params


class Table:
  """All prefixes that do not end in STOP, shortest first, for one problem."""

  def __init__(self, world, problem):
    self.world, self.problem = world, problem
    others = [a for a in range(world.vocab) if a != STOP]
    self.prefixes = [p for k in range(world.answer) for p in itertools.product(others, repeat=k)]
    self.index = {p: i for i, p in enumerate(self.prefixes)}
    size = int(problem.length)
    prompt = tuple(np.asarray(problem.tokens)[:size].tolist())
    width = size + world.answer - 1
    rows = [prompt + p for p in self.prefixes]
    self.tokens = jnp.asarray([r + (0,) * (width - len(r)) for r in rows], jnp.int32)
    self.lengths = jnp.asarray([len(r) for r in rows], jnp.int32)

  def logp(self, config, params):
    """f32[prefixes, V] of the next token."""
    z = decoder.logits(config, params, self.tokens, self.lengths)
    last = jnp.take_along_axis(z, (self.lengths - 1)[:, None, None], axis=1)[:, 0]
    return jax.nn.log_softmax(last, axis=1)

  def answers(self):
    """All answers: those that stop, and those that the budget cuts."""
    out = []
    for p in self.prefixes:
      out += [(*p, STOP)]
      if len(p) == self.world.answer - 1:
        out += [(*p, a) for a in range(self.world.vocab) if a != STOP]
    return out

  def reward(self):
    """Reward of every answer, 0 where it does not stop."""
    answers = self.answers()
    t = self.world.answer
    tokens = jnp.asarray([a + (0,) * (t - len(a)) for a in answers], jnp.int32)
    length = jnp.asarray([len(a) for a in answers], jnp.int32)
    score = jax.vmap(lambda x, n: self.world.score(self.problem, (), x, n).reward)
    stops = np.asarray([a[-1] == STOP for a in answers])
    return dict(zip(answers, np.where(stops, score(tokens, length), 0).tolist(), strict=True))

  def expect(self, logp, of_answer):
    """E[of_answer(answer)] from every prefix."""
    p = np.exp(np.asarray(logp, np.float64))
    value = {}
    for prefix in reversed(self.prefixes):
      total = 0.0
      for a in range(self.world.vocab):
        longer = (*prefix, a)
        after = value[longer] if longer in self.index else of_answer(longer)
        total += p[self.index[prefix], a] * after
      value[prefix] = total
    return value
