"""Sampling and scoring with a language model, in numpy: what the plans' `collect` have in common.

Shapes come from short lists of buckets: prompts are padded to one, completions cut to one after
sampling, so the number of compiled programs is the number of buckets met.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax import sharding
from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout import sampler
from grpo_jax.rollout.choose import Choice
from grpo_jax.types import Batch, Rollouts
from grpo_jax.verifiers.pool import Scores

# Two sizes an octave: padding stays below a third, and compiled programs are few.
BUCKETS = (4, 8, 12, 16, 24, *(size << k for k in range(20) for size in (32, 48)))


def bucket(length: int) -> int:
  """The smallest of BUCKETS that holds `length`."""
  return next(size for size in BUCKETS if size >= length)


@dataclasses.dataclass(frozen=True)
class Collected:
  """A batch, and beside it what a person reads."""

  rollouts: Rollouts
  batch: Batch
  problems: list
  texts: list[list[str]]
  failed: dict[str, int]  # rewards that failed, by kind
  errors: tuple[str, ...]  # their first messages
  seconds: dict[str, float]
  resampled: int = 0
  shown: Rollouts | None = None  # what the batch's rows are to a reader, where not the rollouts
  counts: Mapping[str, float] = dataclasses.field(
    default_factory=dict
  )  # of this plan, to be logged


@dataclasses.dataclass(frozen=True)
class Sampling:
  """What sampling needs beside parameters and problems."""

  config: ModelConfig
  tokenizer: Any
  group: int
  budget: int
  max_prompt: int
  stop: tuple[str, ...]
  stop_ids: tuple[int, ...]
  choice: Choice
  slots: int
  seed: int
  mesh: Any
  trunk: tuple[int, ...] = ()  # ids that every prompt begins with; computed once
  pack: bool = False  # completions of a prompt in one row of the batch
  units: int = 1  # U: at most so many units a completion
  cut: str = ""  # a unit ends with the token that completes this text
  attention: str | None = None  # implementation of the attention while decoding


class Ask(NamedTuple):
  """What a plan's `collect` is given: one step's batch of `count` prompts from draw(n) -> problems.

  show(problems), unpacked, gives the demonstrations of plans that want them.
  """

  sampling: Sampling
  params: Any
  pool: Any
  draw: Callable[[int], Sequence]
  count: int
  step: int
  show: Callable[[Sequence], Collected] | None = None


def encode(s: Sampling, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """i32[N, P] padded on the right to a bucket, and i32[N] lengths, both without the trunk."""
  ids = [s.tokenizer.encode(p) for p in prompts]
  longest = max(map(len, ids))
  if longest > s.max_prompt:
    raise UserError(
      f"sample.max_prompt_tokens={s.max_prompt}: a prompt has {longest} tokens; raise it, shorten "
      "the prompt, or drop the row"
    )
  if min(map(len, ids)) < 1:
    raise UserError("data: a prompt is empty; it must have at least one token")
  ids = [x[len(s.trunk) :] for x in ids]
  padded = np.zeros((len(ids), bucket(longest - len(s.trunk))), np.int32)
  for row, x in zip(padded, ids, strict=True):
    row[: len(x)] = x
  return padded, np.asarray([len(x) for x in ids], np.int32)


def longest_prompt(tokenizer, problems: Sequence, limit: int) -> tuple[int, Any]:
  """(tokens, problem) of the longest prompt, where one may exceed `limit`; else (0, None).

  A token stands for a byte or more, so a text of at most `limit` bytes need not be encoded.
  """
  long = [p for p in problems if len(p.prompt.encode()) + 1 > limit]
  sizes = [len(tokenizer.encode(p.prompt)) for p in long]
  return max(zip(sizes, long, strict=True), key=lambda pair: pair[0], default=(0, None))


def common_start(tokenizer, prompts: Sequence[str]) -> tuple[int, ...]:
  """The ids that all prompts begin with, at least one id short of the shortest; () if under 8."""
  first, last = min(prompts), max(prompts)
  if not first or first[:8] != last[:8]:  # neighbours in order share the most: no need to encode
    return ()
  ids = [tokenizer.encode(p) for p in prompts]
  size = min(map(len, ids)) - 1
  first = np.asarray([x[:size] for x in ids])
  same = np.all(first == first[:1], axis=0)
  size = size if same.all() else int(np.argmin(same))
  return tuple(ids[0][:size]) if size >= 8 else ()


def text_of(s: Sampling, ids: np.ndarray) -> str:
  """The answer as a reader sees it: no special tokens, nothing from a stop text on."""
  text = s.tokenizer.decode(ids.tolist())
  for stop in s.stop:
    text = text.split(stop)[0]
  return text


@functools.partial(jax.jit, static_argnums=0)
def _prompt_keys(sharding, seed, step, round_, ids, repeats):
  """fold_in(seed, step, round, prompt id, how often the id came before in this batch)."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), round_)
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  keys = jax.vmap(jax.random.fold_in)(fold(key, ids), repeats)
  return jax.lax.with_sharding_constraint(keys, sharding)


def _repeats(ids: np.ndarray) -> np.ndarray:
  seen: dict[int, int] = {}
  out = np.zeros(len(ids), np.uint32)
  for i, x in enumerate(ids.tolist()):
    out[i] = seen.get(x, 0)
    seen[x] = seen.get(x, 0) + 1
  return out


def prompt_keys(s: Sampling, problems: Sequence, step: int, round_: int = 0):
  """A key a prompt, on the devices, for as many prompts as `padded` makes of them."""
  ids = np.asarray([p.id for p in problems], np.uint32)
  numbers = np.asarray([s.seed, step, round_], np.uint32)
  return _prompt_keys(sharding.rows(s.mesh), *numbers, padded(s, ids), padded(s, _repeats(ids)))


def padded(s: Sampling, x: np.ndarray) -> np.ndarray:
  """Rows filled up to what the mesh divides, with copies of the first."""
  short = -len(x) % sharding.row_shards(s.mesh)
  return np.concatenate([x, np.repeat(x[:1], short, axis=0)]) if short else x


def complete(s: Sampling, params, prompt: np.ndarray, length: np.ndarray, keys, group: int):
  """Completions of padded prompts as host arrays (tokens, logp, length, stopped), on every host."""
  out = sampler.sample(
    s.config,
    params,
    *sharding.put((padded(s, prompt), padded(s, length)), sharding.rows(s.mesh)),
    keys,
    group=group,
    budget=s.budget,
    stop_ids=s.stop_ids,
    choice=s.choice,
    slots=s.slots or None,
    trunk=np.asarray(s.trunk, np.int32) if s.trunk else None,
    implementation=s.attention,
  )
  out = sharding.to_host(out)
  return tuple(a[: len(prompt)] for a in (out.tokens, out.logp, out.length, out.stopped))


def generate(s: Sampling, params, problems: Sequence, step: int, round_: int = 0):
  """Completions of the problems' prompts: host arrays (tokens, logp, length, stopped), prompt ids
  and lengths."""
  prompt, length = encode(s, [p.prompt for p in problems])
  keys = prompt_keys(s, problems, step, round_)
  return complete(s, params, prompt, length, keys, s.group), prompt, length


def score(s: Sampling, pool, problems: Sequence, tokens, length):
  """Texts [N][G]; reward, parts, correct, alive, units as [N, G, ...]; and the pool's scores."""
  n, g = length.shape
  texts = [[text_of(s, tokens[i, j, : length[i, j]]) for j in range(g)] for i in range(n)]
  flat = [t for row in texts for t in row]
  owners = [p for p in problems for _ in range(g)]
  scores = judge(pool, flat, owners, length.reshape(-1).tolist())
  named = {name: getattr(scores, name) for name in SCORED if getattr(scores, name) is not None}
  return texts, {k: x.reshape(n, g, *x.shape[1:]) for k, x in named.items()}, scores


SCORED = ("reward", "parts", "correct", "alive", "units")


def judge(pool, texts: list, problems: list, tokens: list) -> Scores:
  """With n hosts, each scores every n-th completion, and all get the same scores of all."""
  hosts = jax.process_count()
  if hosts == 1:
    return pool.score(texts, problems, tokens)
  mine = slice(jax.process_index(), None, hosts)
  found = sharding.together(lambda: pool.score(texts[mine], problems[mine], tokens[mine]))

  def woven(name):
    shares = [getattr(scores, name) for scores in found]
    out = np.empty((len(texts), *shares[0].shape[1:]), shares[0].dtype)
    for i, share in enumerate(shares):
      out[i::hosts] = share
    return out

  failure: list = [None] * len(texts)
  for i, scores in enumerate(found):
    failure[i::hosts] = scores.failure
  return Scores(
    **{name: woven(name) for name in SCORED if getattr(found[0], name) is not None},
    failure=tuple(failure),
    failed={kind: sum(scores.failed[kind] for scores in found) for kind in found[0].failed},
    errors=tuple(error for scores in found for error in scores.errors),
  )
