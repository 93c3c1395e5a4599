"""Copy, reverse or sort a few symbols.

Tokens: `kinds` letters in their order, ">". The prompt is the letters and ">"; the answer is as
many letters and STOP. Reward: 1 for exactly the right ones. Parts: `right`, the share of the
letters that stand in their place.

Chance: the mean over lengths n of V^-(n+1). Best: 1. The simplest world whose answers have inner
structure (papers 10, 59) and, with `shortest`, prompts of several lengths.
"""

import string

import jax.numpy as jnp

from grpo_jax.envs.world import PAD, STOP, Problem, Verdict, World, check, draw, pad, read
from grpo_jax.names import one_of

_FIRST = 2
_TASKS = ("copy", "reverse", "sort")


def make(
  *, task: str = "reverse", items: int = 5, kinds: int = 8, shortest: int | None = None
) -> World:
  """Prompts have `shortest` (if not given: `items`) to `items` letters out of `kinds`."""
  one_of("sequence.task", task, _TASKS)
  check("sequence.items", items, 1, 32)
  check("sequence.kinds", kinds, 2, 52)
  shortest = items if shortest is None else shortest
  check("sequence.shortest", shortest, 1, items)
  end = _FIRST + kinds
  place = jnp.arange(items + 1)

  def problem(key):
    shown, (count,) = draw(key, (items + 1, kinds), (1, items + 1 - shortest))
    count += shortest
    shown = jnp.where(place < count, shown + _FIRST, PAD)
    if task == "reverse":
      answer = jnp.where(place < count, shown[jnp.maximum(count - 1 - place, 0)], PAD)
    elif task == "sort":
      answer = jnp.sort(jnp.where(place < count, shown, end))
    else:
      answer = shown
    tokens = jnp.where(place == count, end, shown)
    answer = jnp.where(place < count, answer, jnp.where(place == count, STOP, PAD))
    return Problem(tokens=tokens, length=count + 1, data=answer)

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    wanted = problem.length - 1
    same = (written == problem.data) & (place < wanted)
    correct = stopped & (count == wanted) & (jnp.sum(same) == wanted)
    share = jnp.sum(same).astype(jnp.float32) / wanted.astype(jnp.float32)
    return Verdict(reward=correct.astype(jnp.float32), correct=correct, parts=share[None])

  symbols = ("_", ".", *string.ascii_letters[:kinds], ">")
  lengths = range(shortest, items + 1)
  return World(
    name="sequence",
    symbols=symbols,
    prompt=items + 1,
    answer=items + 1,
    problem=problem,
    score=score,
    solution=lambda problem: pad(problem.data, items + 1),
    chance=sum(len(symbols) ** -(n + 1.0) for n in lengths) / len(lengths),
    parts=("right",),
  )
