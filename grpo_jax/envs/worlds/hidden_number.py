"""Find a number in a few guesses; after each the world says whether it is higher or lower.

Tokens: the numbers 0..n-1, "?", "higher", "lower", "none". The prompt is `0 n-1 ?`. A turn is one
guess; after a wrong one, unless it was the last, the world writes "higher" (the hidden number is
higher) or "lower", or "none" where the guess was no number. The right guess, the last or STOP ends
the episode. Reward: 1 if found. `turn_reward`: the bits that a guess gains on a uniform prior,
log2(numbers still possible before / after) / log2 n; those of an episode that finds the number sum
to 1. Parts: `bits`, their sum.

Chance: a token is the hidden number with probability 1/V and STOP with 1/V, whatever was answered:
sum over g < guesses of ((V-2)/V)^g / V. Best, by halving: min(1, (2^guesses - 1) / n).
For cards 16, 53.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array

from grpo_jax.envs.world import STOP, Next, Problem, Verdict, World, check, draw, follow
from grpo_jax.types import Record, record

_FIRST = 2


@record
class _State(Record):
  low: Array  # smallest number still possible
  high: Array
  turn: Array  # guesses made
  told: Array  # the next token is the world's
  found: Array
  done: Array
  bits: Array  # f32[guesses], in units of log2 n


def make(*, numbers: int = 31, guesses: int = 5) -> World:
  """The hidden one of `numbers`, equally likely, must be found in `guesses`."""
  check("hidden_number.numbers", numbers, 2, 58)
  check("hidden_number.guesses", guesses, 1, 64)
  question = _FIRST + numbers  # then higher, lower, none
  size = 2 * guesses - 1

  def problem(key):
    tokens = jnp.asarray([_FIRST, _FIRST + numbers - 1, question], jnp.int32)
    ((secret,),) = draw(key, (1, numbers))
    return Problem(tokens=tokens, length=jnp.int32(3), data=secret)

  def start(problem):
    del problem
    zero, no = jnp.int32(0), jnp.bool_(False)
    state = _State(
      low=zero, high=jnp.int32(numbers - 1), turn=zero, told=no, found=no, done=no,
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
    return (state.low + state.high) // 2 + _FIRST

  step = lambda problem, state, token: _step(problem.data, state, token, numbers, guesses)
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
    best=min(1.0, (2**guesses - 1) / numbers),
    turns=guesses,
    parts=("bits",),
    start=start,
    step=step,
    gold=lambda problem: (problem.data[None] + _FIRST, jnp.ones(1, bool)),
  )


def _step(secret, state: _State, token, numbers: int, guesses: int):
  guess, reply_token = token - _FIRST, _FIRST + numbers
  acts = ~state.told & ~state.done
  number = (guess >= 0) & (guess < numbers)
  found = acts & (guess == secret)
  below, above = acts & number & (guess < secret), acts & number & (guess > secret)
  low = jnp.where(below, jnp.maximum(state.low, guess + 1), state.low)
  high = jnp.where(above, jnp.minimum(state.high, guess - 1), state.high)
  low, high = jnp.where(found, secret, low), jnp.where(found, secret, high)
  left = lambda low, high: (high - low + 1).astype(jnp.float32)
  gain = jnp.log2(left(state.low, state.high) / left(low, high)) / math.log2(numbers)
  turn = state.turn + acts.astype(jnp.int32)
  done = state.done | found | (acts & ((token == STOP) | (turn == guesses)))
  told = acts & ~done
  reply = reply_token + jnp.where(below, 1, jnp.where(above, 2, 3))
  state = _State(
    low=low, high=high, turn=turn, told=told, found=state.found | found, done=done,
    bits=jnp.where(acts, state.bits.at[state.turn].set(gain), state.bits),
  )  # fmt: skip
  force = jnp.where(told, reply, -1)
  return state, Next(force=force, done=done, turn=jnp.minimum(turn, guesses - 1))
