"""Sampled and scored completions as `Rollouts` and `Batch`, in numpy: the host's half of a step.

Shapes come from short lists of buckets: prompts are padded to one, completions cut to one after
sampling, so the number of compiled programs is the number of buckets met.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax import sharding
from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout import given, sampler
from grpo_jax.rollout.choose import Choice
from grpo_jax.rollout.pack import pack
from grpo_jax.types import Batch, Flat, Rollouts
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
  attention: str | None = None  # implementation of the attention while decoding


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


def generate(s: Sampling, params, problems: Sequence, step: int, round_: int = 0):
  """Completions of the problems' prompts: host arrays (tokens, logp, length, stopped), prompt ids
  and lengths, on every host. Rows are padded to what the mesh divides."""
  prompt, length = encode(s, [p.prompt for p in problems])
  ids = np.asarray([p.id for p in problems], np.uint32)
  short = -len(problems) % sharding.row_shards(s.mesh)
  pad = lambda x: np.concatenate([x, np.repeat(x[:1], short, axis=0)]) if short else x
  rows = sharding.rows(s.mesh)
  numbers = np.asarray([s.seed, step, round_], np.uint32)
  keys = _prompt_keys(rows, *numbers, pad(ids), pad(_repeats(ids)))
  out = sampler.sample(
    s.config,
    params,
    *sharding.put((pad(prompt), pad(length)), rows),
    keys,
    group=s.group,
    budget=s.budget,
    stop_ids=s.stop_ids,
    choice=s.choice,
    slots=s.slots or None,
    trunk=np.asarray(s.trunk, np.int32) if s.trunk else None,
    implementation=s.attention,
  )
  out = sharding.fetch(out)
  n = len(problems)
  tokens, logp, reached, stopped = (a[:n] for a in (out.tokens, out.logp, out.length, out.stopped))
  return (tokens, logp, reached, stopped), prompt, length


def score(s: Sampling, pool, problems: Sequence, tokens, length):
  """Texts [N][G], and reward, parts, correct, alive shaped [N, G, ...]."""
  n, g = length.shape
  texts = [[text_of(s, tokens[i, j, : length[i, j]]) for j in range(g)] for i in range(n)]
  flat = [t for row in texts for t in row]
  owners = [p for p in problems for _ in range(g)]
  scores = _share(pool, flat, owners, length.reshape(-1).tolist())
  shaped = {
    name: getattr(scores, name).reshape(n, g, *getattr(scores, name).shape[1:])
    for name in ("reward", "parts", "correct", "alive")
  }
  return texts, shaped, scores


def _share(pool, texts: list, problems: list, tokens: list) -> Scores:
  """Each host scores every so-manieth completion, and all get the same scores of all."""
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
    **{name: woven(name) for name in ("reward", "parts", "correct", "alive")},
    failure=tuple(failure),
    failed={kind: sum(scores.failed[kind] for scores in found) for kind in found[0].failed},
    errors=tuple(error for scores in found for error in scores.errors),
  )


def collect(
  s: Sampling,
  params,
  pool,
  draw,
  count: int,
  step: int,
  plan: Flat,
  show: Callable[[Sequence], Collected] | None = None,
) -> Collected:
  """One step's batch of `count` prompts from `draw(n) -> problems`.

  With `plan.resample`, groups of equal rewards are dropped and fresh prompts drawn for at most that
  many further rounds; what is missing at the end is padded with dead rollouts of no tokens.
  With `plan.demonstrate`, show(problems), unpacked, gives the completion that follows the samples.
  """
  kept: list[dict] = []
  failed: dict[str, int] = {}
  errors: tuple[str, ...] = ()
  seconds = {"sample": 0.0, "verify": 0.0}
  dropped, dead = 0, {}
  for round_ in range(plan.resample + 1):
    problems = draw(count)
    start = time.monotonic()
    (tokens, logp, length, stopped), prompt, prompt_length = generate(
      s, params, problems, step, round_
    )
    seconds["sample"] += time.monotonic() - start
    start = time.monotonic()
    texts, scores, raw = score(s, pool, problems, tokens, length)
    seconds["verify"] += time.monotonic() - start
    failed = {k: failed.get(k, 0) + v for k, v in raw.failed.items()}
    errors += raw.errors
    for i, problem in enumerate(problems):
      alive = scores["alive"][i]
      reward = scores["reward"][i][alive]
      flat = reward.size == 0 or reward.max() == reward.min()
      group = {
        "problem": problem,
        "texts": texts[i],
        "tokens": tokens[i],
        "logp": logp[i],
        "length": length[i],
        "stopped": stopped[i],
        "prompt": prompt[i, : prompt_length[i]],
        **{k: v[i] for k, v in scores.items()},
      }
      if plan.resample and flat:
        dropped += 1
        dead = group | {"alive": np.zeros_like(alive), "length": np.zeros_like(length[i])}
      elif len(kept) < count:
        kept.append(group)
    if len(kept) == count:
      break
  kept += [dead] * (count - len(kept)) if dropped else []
  got = _assemble(s, kept, show if plan.demonstrate else None)
  return Collected(*got, failed=failed, errors=errors, seconds=seconds, resampled=dropped)


def _assemble(s: Sampling, kept: list[dict], show=None):
  """(rollouts, batch, problems, texts) of the kept groups."""
  stack = lambda name: np.stack([k[name] for k in kept])
  length = stack("length")
  n, g = length.shape
  width = min(bucket(int(length.max())), s.budget)
  prompt_length = np.asarray([len(k["prompt"]) for k in kept], np.int32)
  prompt = np.zeros((n, bucket(int(prompt_length.max()))), np.int32)
  for row, k in zip(prompt, kept, strict=True):
    row[: len(k["prompt"])] = k["prompt"]
  mask = (np.arange(width)[None, None] < length[..., None]).astype(np.float32)
  mask = mask.reshape(n * g, width)
  alive = stack("alive")
  small: dict[str, Any] = {
    "prompt": np.asarray([k["problem"].id for k in kept], np.int32),
    "reward": np.where(alive, stack("reward"), 0).astype(np.float32),
    "alive": alive,
    "correct": stack("correct"),
    "truncated": ~stack("stopped"),
    "length": length,
    "parts": np.nan_to_num(stack("parts")).astype(np.float32),
  }
  rows = lambda name: np.ascontiguousarray(stack(name)[:, :, :width].reshape(n * g, width))
  large: dict[str, Any] = {
    "tokens": rows("tokens"),
    "mask": mask,
    "unit": np.zeros((n * g, width), np.int32),
    "unit_mask": (mask.sum(axis=1, keepdims=True) > 0).astype(np.float32),
    "owner": np.arange(n * g, dtype=np.int32)[:, None],
    "logp_sampler": rows("logp"),
    "prompt_tokens": prompt,
    "prompt_length": prompt_length,
  }
  rollouts, batch = Rollouts(**small), Batch(**large)
  problems, texts = [k["problem"] for k in kept], [k["texts"] for k in kept]
  if show is not None:
    shown = show(problems)
    rollouts, batch = given.append(rollouts, batch, shown.rollouts, shown.batch)
    texts = [own + more for own, more in zip(texts, shown.texts, strict=True)]
  if s.pack:
    batch = pack(batch, np.asarray(rollouts.length), bucket)
  return rollouts, batch, problems, texts
