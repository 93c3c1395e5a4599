"""`a + b =` with the answer (a + b) mod m: one token, every answer enumerable.

Tokens: 0..m-1 as symbols, "+", "=". The simplest world: the policy can be solved exactly.
"""

import jax
import jax.numpy as jnp

from grpo_jax.envs.world import STOP, Problem, Verdict, World, pad, read
from grpo_jax.names import between

_FIRST = 2


def make(*, modulus: int = 10, answer: int = 4) -> World:
  """`answer` tokens are the budget; a right answer is the number, then STOP."""
  between("modular_addition.modulus", modulus, 2)
  between("modular_addition.answer", answer, 2)
  plus, equals = _FIRST + modulus, _FIRST + modulus + 1

  def problem(key):
    a, b = jax.random.randint(key, (2,), 0, modulus)
    tokens = jnp.stack([a + _FIRST, jnp.int32(plus), b + _FIRST, jnp.int32(equals)])
    return Problem(tokens=tokens, length=jnp.int32(4), data=(a + b) % modulus)

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    correct = stopped & (count == 1) & (written[0] == problem.data + _FIRST)
    return Verdict(reward=correct.astype(jnp.float32), correct=correct)

  def solution(problem):
    return pad(jnp.stack([problem.data + _FIRST, jnp.int32(STOP)]), answer)

  symbols = ("_", ".", *map(str, range(modulus)), "+", "=")
  return World(
    name="modular_addition",
    symbols=symbols,
    prompt=4,
    answer=answer,
    problem=problem,
    score=score,
    solution=solution,
    chance=len(symbols) ** -2.0,
  )
