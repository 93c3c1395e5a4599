"""The plan `Flat`: G independent completions a prompt, resampled or shown a demonstration."""

import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from grpo_jax.core import rows
from grpo_jax.errors import UserError
from grpo_jax.rollout import given, text_units
from grpo_jax.rollout import play as world_play
from grpo_jax.rollout.collect import Ask, Collected, Sampling, bucket, generate, score
from grpo_jax.rollout.pack import pack
from grpo_jax.rollout.plans import Draw, Game, Where, observe
from grpo_jax.types import Batch, Flat, Rollouts

LOOPS = ("llm", "fused", "control")
SUPPLIES = ()


def check(plan: Flat, where: Where) -> None:
  if where.loop == "control" and plan != Flat():
    raise UserError(f"{where.name}: the method chooses what is sampled, which control cannot do")
  if plan.resample < 0:
    raise UserError(f"resample={plan.resample}: give a number of rounds, at least 0")


# ---- token worlds --------------------------------------------------------------------------------


def play(plan: Flat, game: Game) -> Draw:
  rollouts, batch = world_play.play(
    game.world, game.config, game.params, game.problems, game.ids, game.keys, group=game.group
  )
  watched, problems = observe(rollouts, jnp.sum(batch.mask)), game.problems
  if plan.resample:
    rollouts, batch = keep_informative(rollouts, batch, game.keep)
    assert game.train is not None
    problems = game.train(rollouts.prompt)
  if plan.demonstrate:
    rollouts, batch = world_play.with_demonstrations(game.world, problems, rollouts, batch)
  return Draw(rollouts, batch, problems, watched)


def keep_informative(rollouts: Rollouts, batch: Batch, size: int) -> tuple[Rollouts, Batch]:
  """DAPO's dynamic sampling: the first `size` groups whose rewards differ; where there are too few,
  the others follow with `alive` = False."""
  reward = rollouts.reward
  differ = jnp.max(reward, axis=1) > jnp.min(reward, axis=1)
  order = jnp.argsort(~differ, stable=True)[:size]
  kept, batch = rows.take_prompts(rollouts, batch, order)
  return kept.replace(alive=kept.alive & jnp.take(differ, order)[:, None]), batch


# ---- language models -----------------------------------------------------------------------------


def collect(plan: Flat, ask: Ask) -> Collected:
  """With `resample`, groups of equal rewards are dropped and fresh prompts drawn for at most that
  many further rounds; what is missing at the end is padded with dead rollouts of no tokens."""
  s, count = ask.sampling, ask.count
  kept: list[dict] = []
  failed: dict[str, int] = {}
  errors: tuple[str, ...] = ()
  seconds = {"sample": 0.0, "verify": 0.0}
  dropped, dead = 0, {}
  for round_ in range(plan.resample + 1):
    problems = ask.draw(count)
    start = time.monotonic()
    (tokens, logp, length, stopped), prompt, prompt_length = generate(
      s, ask.params, problems, ask.step, round_
    )
    seconds["sample"] += time.monotonic() - start
    start = time.monotonic()
    texts, scores, raw = score(s, ask.pool, problems, tokens, length)
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
  got = _assemble(s, kept, ask.show if plan.demonstrate else None)
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
  cut = lambda name: np.ascontiguousarray(stack(name)[:, :, :width].reshape(n * g, width))
  large: dict[str, Any] = {
    "tokens": cut("tokens"),
    "mask": mask,
    "unit": np.zeros((n * g, width), np.int32),
    "unit_mask": (mask.sum(axis=1, keepdims=True) > 0).astype(np.float32),
    "owner": np.arange(n * g, dtype=np.int32)[:, None],
    "logp_sampler": cut("logp"),
    "prompt_tokens": prompt,
    "prompt_length": prompt_length,
  }
  if s.units > 1:
    rewards = stack("units").reshape(n * g, -1) if "units" in kept[0] else None
    large |= text_units.fields(s, large["tokens"], mask, rewards)
  rollouts, batch = Rollouts(**small), Batch(**large)
  problems, texts = [k["problem"] for k in kept], [k["texts"] for k in kept]
  if show is not None:
    shown = show(problems)
    rollouts, batch = given.append(rollouts, batch, shown.rollouts, shown.batch)
    texts = [own + more for own, more in zip(texts, shown.texts, strict=True)]
  if s.pack:
    batch = pack(batch, np.asarray(rollouts.length), bucket)
  return rollouts, batch, problems, texts
