"""Token worlds: tasks whose prompts, transitions and verdicts are arrays, so that a whole RL run is
one compiled program.

A world is gymnax's functional form for tokens: `problem` is reset, `step` is step, state and
problem are pytrees, everything is for one problem or one rollout and is batched by vmap.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.names import between
from grpo_jax.types import Record, record

PAD, STOP = 0, 1  # the same in every world; a world's own symbols begin at 2
MANY = 2**31 - 1  # a limit for `draw` where the values are to be sorted or divided further


@record
class Problem(Record):
  tokens: Int[Array, " P"]  # the prompt, padded on the right with PAD
  length: Int[Array, ""]  # of the prompt, at least 1
  data: Any = ()  # what transitions and verdict need to know


@record
class Next(Record):
  """What follows a token in a world of several turns."""

  force: Int[Array, ""]  # the world writes this token next (an observation); -1: the policy's turn
  done: Bool[Array, ""]  # the episode is over; nothing follows
  turn: Int[Array, ""]  # turn of the NEXT token, below `World.turns`


@record
class Verdict(Record):
  reward: Float[Array, ""]  # in [0, 1] unless the world's docstring says otherwise
  correct: Bool[Array, ""]
  parts: Float[Array, " C"] | None = None  # reward components, named by `World.parts`
  turn_reward: Float[Array, " U"] | None = None  # one a turn


@dataclasses.dataclass(frozen=True)
class World:
  """A task: pure functions and static sizes.

  problem(key) -> Problem                               random; equal keys give equal problems
  score(problem, state, tokens i32[T], length) -> Verdict
      `tokens` are the sampled ones, STOP included where there is one, PAD from `length` on;
      with turns, forced tokens lie among them
  solution(problem) -> i32[T]                           a best answer, ended by STOP (unless that
      world ends episodes by itself) and padded; of worlds with turns: the policy's tokens and the
      forced ones as they would follow
  start(problem) -> (state, Next)                       only worlds with turns
  step(problem, state, token) -> (state, Next)          after every token, sampled or forced
  gold(problem) -> (i32[L], bool[L])                    what a right last turn says; which of it is
      the answer; only worlds with turns whose answer is tokens that are known beforehand (paper 53)
  """

  name: str
  symbols: tuple[str, ...]  # how each token is written; the vocabulary
  prompt: int  # P: padded prompt tokens
  answer: int  # T: tokens of the longest episode
  problem: Callable[[Array], Problem]
  score: Callable[[Problem, Any, Array, Array], Verdict]
  solution: Callable[[Problem], Array]
  chance: float  # expected `correct` of uniformly random tokens
  best: float = 1.0  # the greatest expected reward that a policy can reach
  turns: int = 1
  parts: tuple[str, ...] = ()
  start: Callable[[Problem], tuple[Any, Next]] | None = None
  step: Callable[[Problem, Any, Array], tuple[Any, Next]] | None = None
  gold: Callable[[Problem], tuple[Array, Array]] | None = None
  habit: Callable[[Problem], Array] | None = None

  @property
  def vocab(self) -> int:
    return len(self.symbols)

  @property
  def imitated(self) -> "World":
    """This world with its habit as the solution."""
    return self if self.habit is None else dataclasses.replace(self, solution=self.habit)

  def show(self, tokens) -> str:
    """Tokens as text, padding left out."""
    return " ".join(self.symbols[int(t)] for t in tokens if int(t) != PAD)

  def problems(self, seed: int, ids: Int[Array, " N"]) -> Problem:
    """The problems with these ids: the key is fold_in(key(seed), id), so an id is a problem."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), ids)
    return jax.vmap(self.problem)(keys)


def pad(tokens: Array, size: int) -> Array:
  """Fills up with PAD on the right."""
  return jnp.pad(tokens, (0, size - tokens.shape[0]), constant_values=PAD)


def until_stop(tokens: Int[Array, " T"], length: Int[Array, ""]) -> Int[Array, ""]:
  """How many tokens stand before STOP; `length` where there is none."""
  stops = (tokens == STOP) & (jnp.arange(tokens.shape[0]) < length)
  return jnp.where(jnp.any(stops), jnp.argmax(stops), length).astype(jnp.int32)


def digits(value: Array, count: int, base: int = 10) -> Int[Array, " count"]:
  """The last `count` digits of a non-negative number, the most significant first."""
  powers = jnp.asarray([base**i for i in reversed(range(count))], jnp.int32)
  return (value[..., None] // powers) % base


def read(tokens: Int[Array, " T"], length: Int[Array, ""]):
  """An answer as its verdict must see it: whatever lies from `length` on is ignored.

  Returns (the tokens before STOP, PAD from there on; how many; whether STOP ended them).
  """
  stops = (tokens == STOP) & (jnp.arange(tokens.shape[0]) < length)
  count = until_stop(tokens, length)
  written = jnp.where(jnp.arange(tokens.shape[0]) < count, tokens, PAD)
  return written, count, jnp.any(stops)


def draw(key: Array, *wanted: tuple[int, int]) -> list[Array]:
  """For each (count, limit) an i32[count], all values from 0 to limit - 1 equally likely.

  One call of the generator serves them all, because compiling it is most of what a `problem` costs
  to compile. The odds are equal up to limit / 2^32.
  """
  bits = jax.random.bits(key, (sum(count for count, _ in wanted),))
  values, first = [], 0
  for count, limit in wanted:
    values.append((bits[first : first + count] % jnp.uint32(limit)).astype(jnp.int32))
    first += count
  return values


def floats(*values: Array) -> Float[Array, " C"]:
  """Scalars of any kind as one float32 row: the parts of a verdict."""
  return jnp.stack([value.astype(jnp.float32) for value in values])


def follow(start, step, choose, problem: Problem, size: int) -> Int[Array, " size"]:
  """The episode of the policy that writes choose(problem, state): a `solution` with turns."""

  def one(carry, _):
    state, now = carry
    token = jnp.where(now.force >= 0, now.force, choose(problem, state))
    token = jnp.where(now.done, PAD, token).astype(jnp.int32)
    return step(problem, state, token), token

  return jax.lax.scan(one, start(problem), None, length=size)[1]


def check(field: str, value, low, high=None) -> None:
  """Raises UserError unless low <= value <= high."""
  between(field, value, low, high)
