"""`a + b * c =` from left to right modulo m, with intermediate results that the policy may write.

Tokens: the numbers 0..m-1, "+", "-", "*", "=". An answer is any tokens but "=", then "=", the
result and STOP: `7 3 = 5 .` or `= 5 .`. Reward: 1 for the right result, whatever stands before.
Parts: `answer`, the reward; `steps`, how many of the steps-1 intermediate results stand in their
place; `format`, whether the answer has its form.

Chance: with V symbols, sum over the s tokens before "=" of ((V-2)/V)^s V^-3. Best: 1.
With modulus 2 and slack 0 there are few enough answers to enumerate the value of every prefix
(papers 05, 16, 75).
"""

import jax.numpy as jnp

from grpo_jax.envs.world import STOP, Problem, Verdict, World, check, draw, floats, pad, read
from grpo_jax.errors import UserError

_FIRST = 2
_OPS = "+-*"


def make(*, steps: int = 3, modulus: int = 7, ops: str = "+-*", slack: int = 2) -> World:
  """`steps` operations out of `ops`; the budget is the full working and `slack` tokens more."""
  check("chain.steps", steps, 1, 16)
  check("chain.modulus", modulus, 2, 50)
  check("chain.slack", slack, 0, 64)
  if not ops or not set(ops) <= set(_OPS):
    raise UserError(f"chain.ops={ops!r}: give one or more of {_OPS}")
  op_token, equals = _FIRST + modulus, _FIRST + modulus + len(_OPS)
  size = steps + 2 + slack

  def problem(key):
    values, which = draw(key, (steps + 1, modulus), (steps, len(ops)))
    allowed = jnp.asarray([_OPS.index(op) for op in ops], jnp.int32)
    op = allowed[which]
    results = [values[0]]
    for i in range(steps):
      a, b = results[-1], values[i + 1]
      results.append(jnp.stack([a + b, a - b, a * b])[op[i]] % modulus)
    then = jnp.append(op + op_token, jnp.int32(equals))
    tokens = jnp.stack([values + _FIRST, then], axis=1).reshape(-1)
    return Problem(tokens=tokens, length=jnp.int32(tokens.size), data=jnp.stack(results[1:]))

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    marks = written == equals
    last = written[jnp.maximum(count - 1, 0)]
    form = stopped & (count >= 2) & (written[jnp.maximum(count - 2, 0)] == equals)
    form &= (jnp.sum(marks) == 1) & (last >= _FIRST) & (last < op_token)
    correct = form & (last == problem.data[-1] + _FIRST)
    before = jnp.cumsum(marks)[: steps - 1] == 0
    right = before & (written[: steps - 1] == problem.data[:-1] + _FIRST)
    parts = floats(correct, jnp.sum(right), form)
    return Verdict(reward=correct.astype(jnp.float32), correct=correct, parts=parts)

  def solution(problem):
    results = problem.data + _FIRST
    end = jnp.stack([jnp.int32(equals), results[-1], jnp.int32(STOP)])
    return pad(jnp.concatenate([results[:-1], end]), size)

  symbols = ("_", ".", *map(str, range(modulus)), *_OPS, "=")
  v = len(symbols)
  return World(
    name="chain",
    symbols=symbols,
    prompt=2 * steps + 2,
    answer=size,
    problem=problem,
    score=score,
    solution=solution,
    chance=sum(((v - 2) / v) ** s for s in range(size - 2)) / v**3,
    parts=("answer", "steps", "format"),
  )
