"""Follow links that the prompt shows, one segment a hop; only where one ends up is judged.

Tokens: `keys` letters, large and small, ">". The prompt is, in random order, a pair `A b` for every
letter, which says that b follows a, then ">" and the first letter, small. The links are one circle
through all letters. The answer is `hops` segments of two tokens and STOP: the letter where one is,
large, and the one that follows, small: `A b B d D c .`. Reward: 1 if it has `hops` segments and its
last token is the right letter; nothing before it is read. Links are one to one, so after a wrong
hop right ones never lead to the right end: a mistake decides the answer where it is made, and
shows only at the end.
Parts: `links`, the share of segments whose second token follows the second token of the one before;
`path`, the share of the segments before the first that does not.

Chance: ((V-1)/V)^(2 hops - 1) / V^2. Best: 1. For papers 05, 16.
"""

import string

import jax.numpy as jnp

from grpo_jax.envs.world import MANY, STOP, Problem, Verdict, World, check, draw, floats, pad, read

_FIRST = 2


def make(*, keys: int = 6, hops: int = 3) -> World:
  """`hops` links out of a circle of `keys`."""
  check("hops.keys", keys, 3, 26)
  check("hops.hops", hops, 1, 64)
  small, arrow = _FIRST + keys, _FIRST + 2 * keys
  size = 2 * hops + 1

  def problem(key):
    circle, order, (first,) = draw(key, (keys, MANY), (keys, MANY), (1, keys))
    circle = jnp.argsort(circle).astype(jnp.int32)
    follows = jnp.zeros(keys, jnp.int32).at[circle].set(jnp.roll(circle, -1))
    order = jnp.argsort(order).astype(jnp.int32)
    pairs = jnp.stack([order + _FIRST, follows[order] + small], axis=1).reshape(-1)
    ends = jnp.stack([jnp.int32(arrow), first + small])
    path = [first]
    for _ in range(hops):
      path.append(follows[path[-1]])
    data = {"follows": follows, "path": jnp.stack(path)}
    return Problem(tokens=jnp.concatenate([pairs, ends]), length=jnp.int32(2 * keys + 2), data=data)

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    second = written[1 : 2 * hops : 2] - small
    before = jnp.concatenate([problem.data["path"][:1], second[:-1]])
    known = (before >= 0) & (before < keys)
    right = known & (second == problem.data["follows"][jnp.clip(before, 0, keys - 1)])
    correct = stopped & (count == 2 * hops) & (second[-1] == problem.data["path"][-1])
    share = lambda x: jnp.sum(x).astype(jnp.float32) / hops
    parts = floats(share(right), share(jnp.cumprod(right.astype(jnp.int32))))
    return Verdict(reward=correct.astype(jnp.float32), correct=correct, parts=parts)

  def solution(problem):
    path = problem.data["path"]
    segments = jnp.stack([path[:-1] + _FIRST, path[1:] + small], axis=1).reshape(-1)
    return pad(jnp.append(segments, jnp.int32(STOP)), size)

  letters = string.ascii_letters[:keys]
  symbols = ("_", ".", *letters.upper(), *letters, ">")
  v = float(len(symbols))
  return World(
    name="hops",
    symbols=symbols,
    prompt=2 * keys + 2,
    answer=size,
    problem=problem,
    score=score,
    solution=solution,
    chance=((v - 1) / v) ** (2 * hops - 1) / v**2,
    parts=("links", "path"),
  )
