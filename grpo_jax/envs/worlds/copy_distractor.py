"""Copy a short marked span out of a long prompt of distracting letters.

Tokens: `kinds` letters, "[", "]", ">". The prompt is `length` letters with "[", `span` letters and
"]" somewhere among them and ">" at the end; all prompts have the same length. The answer is the
letters between the marks and STOP. Reward: 1 for exactly those. Parts: `right`, the share of them
that stand in their place.

Chance: V^-(span+1). Best: 1. For long prompts that many answers share (papers 32, 59).
"""

import string

import jax
import jax.numpy as jnp

from grpo_jax.envs.world import STOP, Problem, Verdict, World, check, draw, read

_FIRST = 2


def make(*, length: int = 128, span: int = 3, kinds: int = 16) -> World:
  """Prompts of `length` tokens, `span` of them marked."""
  check("copy_distractor.span", span, 1, 16)
  check("copy_distractor.length", length, span + 3, 512)
  check("copy_distractor.kinds", kinds, 2, 52)
  opened = _FIRST + kinds
  closed, end = opened + 1, opened + 2
  place = jnp.arange(length)

  def problem(key):
    letters, (start,) = draw(key, (length, kinds), (1, length - span - 2))
    tokens = letters + _FIRST
    marked = jax.lax.dynamic_slice(tokens, (start + 1,), (span,))
    tokens = jnp.where(place == start, opened, tokens)
    tokens = jnp.where(place == start + span + 1, closed, tokens)
    tokens = jnp.where(place == length - 1, end, tokens)
    return Problem(tokens=tokens, length=jnp.int32(length), data=marked)

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    same = written[:span] == problem.data
    correct = stopped & (count == span) & jnp.all(same)
    share = jnp.sum(same).astype(jnp.float32) / span
    return Verdict(reward=correct.astype(jnp.float32), correct=correct, parts=share[None])

  symbols = ("_", ".", *string.ascii_letters[:kinds], "[", "]", ">")
  return World(
    name="copy_distractor",
    symbols=symbols,
    prompt=length,
    answer=span + 1,
    problem=problem,
    score=score,
    solution=lambda problem: jnp.append(problem.data, jnp.int32(STOP)),
    chance=len(symbols) ** -(span + 1.0),
    parts=("right",),
  )
