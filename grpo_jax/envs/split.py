"""Which problems are trained on and which are held out.

  split="hash"  by the prompt's tokens: a quarter of all prompts is held out, whatever their number,
                and none of them is met in training or in the warm start. Overlap is 0.
  split="id"    by the problem's number alone, for worlds with too few prompts to hold some out
                (or with one, where all that differs is hidden): held-out problems have numbers of
                their own but mostly prompts that training knows. Call them training problems.

Training problems have slots 0 .. problems - 1, by which methods remember them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from grpo_jax.envs.world import Problem, World
from grpo_jax.errors import UserError

SPLITS = ("hash", "id")
SHARE = 4  # one prompt of so many is held out
LEAST = 32  # held-out prompts that a world must have
_SCANNED = 4096  # numbers looked through at least
_WARM_IDS, _HELD_IDS = 1 << 28, 1 << 29  # by number: of the warm start, held out


def prompt_hash(tokens, length, xp=np):
  """uint32[...] of tokens[..., :length]; the same with xp = numpy and jax.numpy.

  A sum over the places of a mixture of token and place, mixed once more: no bit of it follows a
  bit of the tokens, so that residue classes are fair.
  """
  place = xp.broadcast_to(xp.arange(tokens.shape[-1], dtype=xp.uint32), tokens.shape)
  each = tokens.astype(xp.uint32) * xp.uint32(0x9E3779B1) + (place + 1) * xp.uint32(0x85EBCA77)
  each = xp.where(place < length[..., None].astype(xp.uint32), _mix(each, xp), xp.uint32(0))
  return _mix(xp.sum(each, axis=-1, dtype=xp.uint32) + length.astype(xp.uint32), xp)


def _mix(x, xp):
  """A bijection of 32 bits in which every bit of x moves every bit of the outcome."""
  x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x7FEB352D)
  x = (x ^ (x >> xp.uint32(15))) * xp.uint32(0x846CA68B)
  return x ^ (x >> xp.uint32(16))


def is_held(hashes, xp=np):
  return hashes % xp.uint32(SHARE) == 0


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Problems by slot, of the warm start, and held out; pure inside jit."""

  world: World
  seed: int
  how: str
  train_ids: np.ndarray  # i32[problems]
  held_ids: np.ndarray  # i32[heldout]

  @property
  def label(self) -> str:
    """What measurements on `held` are called on a page."""
    return "held-out prompts" if self.how == "hash" else "training problems"

  def train(self, slots: Int[Array, " N"]) -> Problem:
    return self.world.problems(self.seed, jnp.asarray(self.train_ids)[slots])

  def held(self) -> Problem:
    return self.world.problems(self.seed, jnp.asarray(self.held_ids))

  def probe(self, count: int) -> Problem:
    """Problems that tell how far a warm start is: no held-out prompt decides when it ends."""
    if self.how == "id":
      ids = _HELD_IDS + _WARM_IDS + jnp.arange(count)
    else:
      ids = jnp.asarray(np.resize(self.train_ids, count))
    return self.world.problems(self.seed, ids)

  def warm(self, key: Array, count: int) -> tuple[Int[Array, " count"], Problem]:
    """Fresh problems for a supervised step, and their numbers."""
    if self.how == "id":
      ids = _WARM_IDS + jax.random.randint(key, (count,), 0, _WARM_IDS)
    else:
      ids = _WARM_IDS + jax.random.randint(key, (2 * count,), 0, _WARM_IDS)
      made = self.world.problems(self.seed, ids)
      held = is_held(prompt_hash(made.tokens, made.length, jnp), jnp)
      order = jnp.argsort(held, stable=True)[:count]
      ids = jnp.where(held[order], ids[order[0]], ids[order])
    return ids, self.world.problems(self.seed, ids)


@functools.lru_cache(maxsize=64)
def split_of(world: World, seed: int, how: str, problems: int, heldout: int) -> Split:
  """The split of a run. UserError for a world with fewer than LEAST prompts to hold out."""
  if how == "id":
    return Split(world, seed, how, np.arange(problems), _HELD_IDS + np.arange(heldout))
  count = max(_SCANNED, 2 * problems, 2 * SHARE * heldout)
  with jax.ensure_compile_time_eval():  # may be asked for while a run is traced
    codes = hashes(world, seed, count)
  held = is_held(codes)
  train_ids, held_ids = np.flatnonzero(~held), np.flatnonzero(held)
  distinct = len(np.unique(codes[held]))
  if distinct < LEAST or len(train_ids) < problems or len(held_ids) < heldout:
    raise UserError(
      f'split="hash": world {world.name} has {len(np.unique(codes))} prompts, too few to hold '
      'some out; use split="id", or make the world larger'
    )
  return Split(
    world, seed, how, train_ids[:problems].astype(np.int32), held_ids[:heldout].astype(np.int32)
  )


def hashes(world: World, seed: int, count: int) -> np.ndarray:
  """uint32[count]: of the prompts of problems 0 .. count - 1."""

  @jax.jit
  def of(ids):
    made = world.problems(seed, ids)
    return prompt_hash(made.tokens, made.length, jnp)

  return np.asarray(of(jnp.arange(count)))
