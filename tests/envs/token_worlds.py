"""How the tests play token worlds: many proposals at once, compiled once a world.

A proposal is what a policy would write at every position; forced tokens and the end of the episode
override it. Oracles are written on symbols (strings), apart from the worlds.
"""

import copy
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import envs
from grpo_jax.envs.world import PAD, STOP

ROWS = 512  # proposals a compiled call
FAST = {"xla_backend_optimization_level": 0}  # compiles in half the time


class Played(NamedTuple):
  """numpy arrays, one entry a proposal."""

  tokens: Any
  length: Any
  forced: Any  # bool[T]: the world wrote it
  turn: Any
  done: Any
  verdict: Any
  dirty: Any  # the verdict on the same tokens with garbage from `length` on


def _episode(world, problem, proposal):
  """(tokens, length, forced, turn, done, state) of one rollout."""
  place = jnp.arange(world.answer)
  if world.step is None:
    stops = proposal == STOP
    length = jnp.where(jnp.any(stops), jnp.argmax(stops) + 1, world.answer).astype(jnp.int32)
    tokens = jnp.where(place < length, proposal, PAD)
    return tokens, length, jnp.zeros_like(tokens, bool), jnp.zeros_like(tokens), True, ()

  def one(carry, token):
    state, now = carry
    token = jnp.where(now.force >= 0, now.force, token)
    new = world.step(problem, state, token)
    keep = jax.tree.map(lambda a, b: jnp.where(now.done, a, b), carry, new)
    wrote = (jnp.where(now.done, PAD, token), ~now.done, (now.force >= 0) & ~now.done, now.turn)
    return keep, wrote

  (state, now), (tokens, on, forced, turn) = jax.lax.scan(one, world.start(problem), proposal)
  return tokens, jnp.sum(on, dtype=jnp.int32), forced, turn, now.done, state


def play_one(world, problem, proposal, junk=None) -> Played:
  """junk: what to put from the episode's length on for the second verdict."""
  tokens, length, forced, turn, done, state = _episode(world, problem, proposal)
  if junk is None:
    verdict = world.score(problem, state, tokens, length)
    return Played(tokens, length, forced, turn, jnp.asarray(done), verdict, None)
  both = jnp.stack([tokens, jnp.where(jnp.arange(world.answer) < length, tokens, junk)])
  verdicts = jax.vmap(world.score, in_axes=(None, None, 0, None))(problem, state, both, length)
  clean, dirty = (jax.tree.map(lambda x, i=i: x[i], verdicts) for i in range(2))
  return Played(tokens, length, forced, turn, jnp.asarray(done), clean, dirty)


@functools.cache
def get(name: str, **kwargs):
  return envs.get(name, **kwargs)


@functools.cache
def compiled(world):
  @functools.partial(jax.jit, compiler_options=FAST)
  def problems(seed, ids):
    made = world.problems(seed, ids)
    return made, jax.vmap(world.solution)(made)

  @functools.partial(jax.jit, compiler_options=FAST)
  def play(problems, proposals, junk):
    return jax.vmap(functools.partial(play_one, world))(problems, proposals, junk)

  return problems, play


@functools.cache
def problems(world, count: int, seed: int = 0):
  """(problems, solutions) with numpy leaves."""
  return jax.tree.map(np.asarray, compiled(world)[0](seed, jnp.arange(count)))


def pick(tree, rows):
  return jax.tree.map(lambda x: x[rows], tree)


def play(world, problems, proposals, junk=None) -> Played:
  """In calls of ROWS proposals, the last filled up with repeats."""
  count = len(proposals)
  junk = np.full(proposals.shape, STOP) if junk is None else junk
  done = []
  for first in range(0, count, ROWS):
    rows = np.minimum(np.arange(first, first + ROWS), count - 1)
    out = compiled(world)[1](pick(problems, rows), proposals[rows], junk[rows].astype(np.int32))
    done.append(jax.tree.map(np.asarray, out))
  return jax.tree.map(lambda *x: np.concatenate(x)[:count], *done)


def mutated(rng, world, solution):
  """Near-misses: solutions with one or two tokens changed, left out, put in or swapped."""
  out = solution.copy()
  used = max(int(np.sum(solution != PAD)), 1)
  for _ in range(rng.integers(1, 3)):
    at, kind = rng.integers(used), rng.integers(4)
    token = rng.integers(world.vocab)
    if kind == 0:
      out[at] = token
    elif kind == 1:
      out = np.append(np.delete(out, at), token)
    elif kind == 2:
      out = np.insert(out, at, token)[:-1]
    else:
      other = rng.integers(used)
      out[[at, other]] = out[[other, at]]
  return out.astype(np.int32)


@functools.cache
def cases(world, seed: int = 0, count: int = ROWS):
  """(problems, proposals, Played): a quarter random, a quarter solutions, half near-misses."""
  rng = np.random.default_rng(seed)
  made, solutions = problems(world, count, seed)
  proposals = rng.integers(0, world.vocab, (count, world.answer)).astype(np.int32)
  for i in range(count // 4, count):
    proposals[i] = solutions[i] if i % 4 == 0 else mutated(rng, world, solutions[i])
  junk = rng.integers(0, world.vocab, proposals.shape)
  junk[:, ::3] = STOP
  return made, proposals, play(world, made, proposals, junk)


def words(world, tokens) -> list[str]:
  return [world.symbols[int(t)] for t in tokens]


def prompt(world, made, i: int) -> list[str]:
  return words(world, made.tokens[i][: made.length[i]])


def before_stop(written: list[str]) -> tuple[list[str], bool]:
  """(what stands before the end mark, whether there is one)."""
  return (written[: written.index(".")], True) if "." in written else (written, False)


def agree(world, oracle, seed: int = 0, count: int = ROWS):
  """Every case gets the oracle's (reward, correct, parts); a fair share of the cases is right.

  oracle(prompt: symbols, answer: symbols) -> (reward, correct, parts)
  """
  made, _, played = cases(world, seed, count)
  compare(world, oracle, made, played)
  assert 0.15 < np.mean(played.verdict.correct) < 0.7


def compare(world, oracle, made, played):
  said, wanted = [], []
  for i in range(len(played.length)):
    asked, written = prompt(world, made, i), words(world, played.tokens[i][: played.length[i]])
    said.append(f"{' '.join(asked)} | {' '.join(written)}")
    wanted.append(oracle(asked, written))
  same(played, wanted, said)


def same(played, wanted, said):
  """wanted: rows of (reward, correct, parts) or (reward, correct, parts, turn_reward)."""
  got = (played.verdict.reward, played.verdict.correct, played.verdict.parts)
  for mine, theirs in zip(
    (*got, played.verdict.turn_reward), zip(*wanted, strict=True), strict=False
  ):
    mine, theirs = mine.astype(np.float64), np.asarray(theirs, np.float64)
    assert mine.shape == theirs.shape
    far = np.abs(mine - theirs) > 1e-6 * (1 + np.abs(theirs))
    rows = np.flatnonzero(far.reshape(len(far), -1).any(axis=1))
    assert not len(rows), (said[rows[0]], mine[rows[0]], theirs[rows[0]])


def agree_by_turns(world, oracle, seed: int = 0, count: int = ROWS):
  """Every case gets the oracle's transcript, turns and verdict.

  oracle(prompt: symbols, data) has write(symbol), and force (a symbol or None), done, turn and
  verdict() -> (reward, correct, parts, turn_reward) of what was written so far.
  """
  made, proposals, played = cases(world, seed, count)
  saids, wanted = [], []
  for i in range(count):
    play, written = oracle(prompt(world, made, i), pick(made.data, i)), []
    said = " ".join(words(world, played.tokens[i][: played.length[i]]))
    while not play.done:
      t = len(written)
      assert played.forced[i, t] == (play.force is not None), said
      assert played.turn[i, t] == play.turn, said
      written.append(play.force or world.symbols[proposals[i, t]])
      play.write(written[-1])
    assert " ".join(written) == said
    saids.append(said)
    wanted.append(play.verdict())
  same(played, wanted, saids)
  assert 0.15 < np.mean(played.verdict.correct) < 0.7


def exact_chance(world, correct, written=()) -> float:
  """Probability that random tokens are right, over all answers of a world of one turn."""
  total = 0.0
  for symbol in world.symbols:
    longer = [*written, symbol]
    if symbol == "." or len(longer) == world.answer:
      total += float(correct(longer)) / world.vocab ** len(longer)
    else:
      total += exact_chance(world, correct, longer)
  return total


def exact_chance_by_turns(world, play) -> float:
  """The same for a world of turns, over all episodes of an oracle."""
  if play.done:
    return float(play.verdict()[1])
  total = 0.0
  for symbol in world.symbols if play.force is None else [play.force]:
    then = copy.deepcopy(play)
    then.write(symbol)
    total += exact_chance_by_turns(world, then)
  return total / (world.vocab if play.force is None else 1)
