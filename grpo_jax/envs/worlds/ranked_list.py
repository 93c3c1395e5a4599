"""Rank shown items by a relevance that the prompt tells: reward NDCG, one unit a rank.

Tokens: `letters` letters, `items` marks 0.., ":", ">". An item is a letter and a mark, and no two
items share a mark. The prompt is two different letters, ":", the items, ">". Items with the first
letter have relevance 2 (there is at least one), those with the second 1, all others 0; the fewer
letters, the more items are relevant. The answer is `ranks` lines of two tokens, best item first; a
world of turns, where turn k is line k and the episode ends by itself after the last line (or by
STOP). A line that is no shown item, or one listed before, counts 0. Reward: NDCG = sum_k rel_k /
log2(k+1) divided by its greatest value. `turn_reward`: rel_k / 2, the part that rank k alone
causes; DCG of the ranks from k on follows from it (paper 58). Correct: every line is a new item and
the relevances are those of a best list. Parts: `lines`, the share of valid lines.

Chance: the mean number of best lists, over the letters of the other items (each equally likely),
times V^(-2 ranks). Best: 1.
"""

import math
import string

import jax.numpy as jnp

from grpo_jax.envs.world import MANY, STOP, Next, Problem, Verdict, World, check, draw

_FIRST = 2


def make(*, items: int = 6, ranks: int | None = None, letters: int = 6) -> World:
  """Lists of `ranks` (if not given: all) of `items` items of `letters` kinds."""
  check("ranked_list.letters", letters, 2, 26)
  check("ranked_list.items", items, 1, 16)
  ranks = items if ranks is None else ranks
  check("ranked_list.ranks", ranks, 1, items)
  first_mark = _FIRST + letters
  colon = first_mark + items

  def problem(key):
    first, other, kinds, (sure,), marks = draw(
      key, (1, letters), (1, letters - 1), (items, letters), (1, items), (items, MANY)
    )
    query = jnp.concatenate([first, (first + 1 + other) % letters])
    kinds = jnp.where(jnp.arange(items) == sure, query[0], kinds)
    marks = jnp.argsort(marks)
    rel = 2 * (kinds == query[0]).astype(jnp.int32) + (kinds == query[1]).astype(jnp.int32)
    names = jnp.stack([kinds + _FIRST, marks + first_mark], axis=1)
    sign = lambda token: jnp.full((1,), token, jnp.int32)
    tokens = [query + _FIRST, sign(colon), names.reshape(-1), sign(colon + 1)]
    data = {"names": names, "rel": rel}
    return Problem(tokens=jnp.concatenate(tokens), length=jnp.int32(2 * items + 4), data=data)

  def start(problem):
    del problem
    return jnp.int32(0), _next(jnp.int32(0), False)

  def step(problem, state, token):
    del problem
    count = jnp.where(token == STOP, 2 * ranks, state + 1).astype(jnp.int32)
    count = jnp.minimum(count, 2 * ranks)
    return count, _next(jnp.minimum(count // 2, ranks - 1), count == 2 * ranks)

  def solution(problem):
    order = jnp.argsort(-problem.data["rel"])[:ranks]
    return problem.data["names"][order].reshape(-1)

  score = lambda problem, state, tokens, length: _score(problem, tokens, length, ranks)
  marks = (str(i) for i in range(items))
  symbols = ("_", ".", *string.ascii_lowercase[:letters], *marks, ":", ">")
  return World(
    name="ranked_list",
    symbols=symbols,
    prompt=2 * items + 4,
    answer=2 * ranks,
    problem=problem,
    score=score,
    solution=solution,
    chance=_best_lists(items, ranks, letters) * float(len(symbols)) ** (-2 * ranks),
    turns=ranks,
    parts=("lines",),
    start=start,
    step=step,
  )


def _next(turn, done):
  return Next(force=jnp.int32(-1), done=jnp.asarray(done), turn=turn)


def _best_lists(items: int, ranks: int, letters: int) -> float:
  """The mean number of lists in the best order: arrangements of each grade's items."""
  total = 0.0
  for two in range(items):
    for one in range(items - two):
      none = items - 1 - two - one
      ways = math.comb(items - 1, two) * math.comb(items - 1 - two, one)
      share = ways * (letters - 2) ** none / letters ** (items - 1)
      a = min(ranks, two + 1)
      b = min(ranks - a, one)
      total += share * math.perm(two + 1, a) * math.perm(one, b) * math.perm(none, ranks - a - b)
  return total


def _score(problem, tokens, length, ranks: int):
  names, rel = problem.data["names"], problem.data["rel"]
  written = jnp.where(jnp.arange(2 * ranks) < length, tokens, 0).reshape(ranks, 2)
  same = jnp.all(written[:, None, :] == names[None, :, :], axis=-1).astype(jnp.int32)
  new = (jnp.cumsum(same, axis=0) == 1).astype(jnp.int32) * same
  gained = new @ rel
  best = -jnp.sort(-rel)[:ranks]
  lines = jnp.sum(new)
  weight = jnp.asarray([1 / math.log2(k + 2) for k in range(ranks)], jnp.float32)
  dcg = lambda gain: jnp.sum(gain.astype(jnp.float32) * weight)
  correct = (lines == ranks) & jnp.all(gained == best)
  return Verdict(
    reward=jnp.where(jnp.all(gained == best), 1.0, dcg(gained) / dcg(best)),
    correct=correct,
    parts=(lines.astype(jnp.float32) / ranks)[None],
    turn_reward=gained.astype(jnp.float32) / 2,
  )
