"""Two numbers with a given sum: many right answers, and a verdict that is sometimes wrong.

Tokens: the numbers 0..m-1, "=". The prompt is `s =`; an answer is two numbers x y with
x + y = s (mod m), and STOP: m right answers of m^2. `correct` is the truth. `reward` is the
verdict: the truth, flipped with probability `flip`. The flip is drawn from a seed in the problem
and from (x, y), so the same answer to the same problem always gets the same verdict; an answer of
another form is never flipped and gets 0.
Parts: `format`; `class`, m x + y of an answer of that form, else -1: its class for methods that
compare answers (paper 65).

Chance: m V^-3. Best reward of a policy that does not know the flips: max(flip, 1 - flip). For
papers 56, 65.
"""

import jax
import jax.numpy as jnp

from grpo_jax.envs.world import MANY, STOP, Problem, Verdict, World, check, draw, floats, pad, read

_FIRST = 2


def make(*, modulus: int = 10, flip: float = 0.1, slack: int = 0) -> World:
  """Verdicts are wrong with probability `flip`; the budget is 3 tokens and `slack`."""
  check("noisy_verdict.modulus", modulus, 2, 50)
  check("noisy_verdict.flip", flip, 0, 1)
  check("noisy_verdict.slack", slack, 0, 64)
  equals = _FIRST + modulus
  size = 3 + slack

  def problem(key):
    (wanted, first), (seed,) = draw(key, (2, modulus), (1, MANY))
    data = {"sum": wanted, "seed": seed, "first": first}  # first: of the demonstrated answer
    tokens = jnp.stack([wanted + _FIRST, jnp.int32(equals)])
    return Problem(tokens=tokens, length=jnp.int32(2), data=data)

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    x, y = written[0] - _FIRST, written[1] - _FIRST
    form = stopped & (count == 2) & (x >= 0) & (x < modulus) & (y >= 0) & (y < modulus)
    kind = jnp.where(form, x * modulus + y, -1)
    correct = form & ((x + y) % modulus == problem.data["sum"])
    key = jax.random.fold_in(jax.random.key(problem.data["seed"]), kind)
    flipped = form & (jax.random.uniform(key) < flip)
    return Verdict(
      reward=(correct ^ flipped).astype(jnp.float32),
      correct=correct,
      parts=floats(form, kind),
    )

  def solution(problem):
    x = problem.data["first"]
    y = (problem.data["sum"] - x) % modulus
    return pad(jnp.stack([x + _FIRST, y + _FIRST, jnp.int32(STOP)]), size)

  symbols = ("_", ".", *map(str, range(modulus)), "=")
  return World(
    name="noisy_verdict",
    symbols=symbols,
    prompt=2,
    answer=size,
    problem=problem,
    score=score,
    solution=solution,
    chance=modulus * len(symbols) ** -3.0,
    best=max(flip, 1 - flip),
    parts=("format", "class"),
  )
