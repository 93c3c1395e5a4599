"""Find a number in a few guesses; after each the world says whether it is higher or lower.

Tokens: the numbers 0..n-1, "?", "higher", "lower", "none". The prompt is `0 n-1 ?`. A turn is one
guess; after a wrong one, unless it was the last, the world writes "higher" (the hidden number is
higher) or "lower", or "none" where the guess was no number. With probability `useless`, drawn by
problem and turn, the answer to a number is "none", too: the less a turn tells, the less can be had
from credit for turns. The right guess, the last or STOP ends the episode. Reward: 1 if found.
`turn_reward`: the bits that a guess gains on a uniform prior, log2(numbers still possible before /
after) / log2 n; those of an episode that finds the number sum to 1. Parts: `bits`, their sum.

Chance: a token is the hidden number with probability 1/V and STOP with 1/V, whatever was answered:
sum over g < guesses of ((V-2)/V)^g / V. Best: W(n, guesses) / n, where W(n, g) is the greatest
number of n that g guesses find: min(n, 2^g - 1) if no answer is useless. Halving reaches it.
For papers 16, 53.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array

from grpo_jax.envs.world import STOP, Next, Problem, Verdict, World, check, draw, follow
from grpo_jax.types import Record, record

_FIRST = 2
_LUCK = 2**24  # float32 holds these


@record
class _State(Record):
  possible: Array  # bool[numbers]
  turn: Array  # guesses made
  told: Array  # the next token is the world's
  found: Array
  done: Array
  bits: Array  # f32[guesses], in units of log2 n


def make(*, numbers: int = 31, guesses: int = 5, useless: float = 0.0) -> World:
  """The hidden one of `numbers`, equally likely, must be found in `guesses`."""
  check("hidden_number.numbers", numbers, 2, 58)
  check("hidden_number.guesses", guesses, 1, 64)
  check("hidden_number.useless", useless, 0, 1)
  question = _FIRST + numbers  # then higher, lower, none
  size = 2 * guesses - 1

  def problem(key):
    tokens = jnp.asarray([_FIRST, _FIRST + numbers - 1, question], jnp.int32)
    wanted = ((1, numbers), *[(guesses, _LUCK)] * (useless > 0))
    (secret,), *luck = draw(key, *wanted)
    silent = luck[0].astype(jnp.float32) < useless * _LUCK if luck else jnp.zeros(guesses, bool)
    data = {"secret": secret, "silent": silent}
    return Problem(tokens=tokens, length=jnp.int32(3), data=data)

  def start(problem):
    del problem
    zero, no = jnp.int32(0), jnp.bool_(False)
    state = _State(
      possible=jnp.ones(numbers, bool), turn=zero, told=no, found=no, done=no,
      bits=jnp.zeros(guesses),
    )  # fmt: skip
    return state, Next(force=jnp.int32(-1), done=no, turn=zero)

  def score(problem, state, tokens, length):
    del problem, tokens, length
    reward, bits = state.found.astype(jnp.float32), state.bits
    parts = jnp.sum(bits)[None]
    return Verdict(reward=reward, correct=state.found, parts=parts, turn_reward=bits)

  def halve(problem, state):
    del problem
    below = jnp.cumsum(state.possible)
    return jnp.argmax(below == (below[-1] + 1) // 2) + _FIRST  # the median of what is possible

  step = lambda problem, state, token: _step(problem.data, state, token)
  symbols = ("_", ".", *map(str, range(numbers)), "?", "higher", "lower", "none")
  v = len(symbols)
  return World(
    name="hidden_number",
    symbols=symbols,
    prompt=3,
    answer=size,
    problem=problem,
    score=score,
    solution=lambda problem: follow(start, step, halve, problem, size),
    chance=sum(((v - 2) / v) ** g for g in range(guesses)) / v,
    best=_found(numbers, guesses, useless) / numbers,
    turns=guesses,
    parts=("bits",),
    start=start,
    step=step,
    gold=lambda problem: (problem.data["secret"][None] + _FIRST, jnp.ones(1, bool)),
  )


def _found(numbers: int, guesses: int, useless: float) -> float:
  """W of the docstring: the best first guess of an ordered set, by induction on the guesses."""
  best = [0.0] * (numbers + 1)
  for _ in range(guesses):
    after = lambda n, i, w: useless * w[n - 1] + (1 - useless) * (w[i] + w[n - 1 - i])
    best = [0.0] + [1 + max(after(n, i, best) for i in range(n)) for n in range(1, numbers + 1)]
  return best[numbers]


def _step(data, state: _State, token):
  secret, silent = data["secret"], data["silent"]
  (numbers,), (guesses,) = state.possible.shape, silent.shape
  guess, place = token - _FIRST, jnp.arange(numbers)
  acts = ~state.told & ~state.done
  number = acts & (guess >= 0) & (guess < numbers)
  found = number & (guess == secret)
  telling = number & ~silent[jnp.minimum(state.turn, guesses - 1)]
  below, above = telling & (guess < secret), telling & (guess > secret)
  possible = state.possible & (place != guess) & ~(below & (place < guess))
  possible &= ~(above & (place > guess))
  possible = jnp.where(found, place == secret, jnp.where(number, possible, state.possible))
  left = lambda x: jnp.sum(x).astype(jnp.float32)
  gain = jnp.log2(left(state.possible) / left(possible)) / math.log2(numbers)
  turn = state.turn + acts.astype(jnp.int32)
  done = state.done | found | (acts & ((token == STOP) | (turn == guesses)))
  told = acts & ~done
  reply = _FIRST + numbers + jnp.where(below, 1, jnp.where(above, 2, 3))
  state = _State(
    possible=possible, turn=turn, told=told, found=state.found | found, done=done,
    bits=jnp.where(acts, state.bits.at[state.turn].set(gain), state.bits),
  )  # fmt: skip
  force = jnp.where(told, reply, -1)
  return state, Next(force=force, done=done, turn=jnp.minimum(turn, guesses - 1))
