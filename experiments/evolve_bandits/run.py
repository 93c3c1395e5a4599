"""The players of one table: oracles, the model under four prompts, and the model after training.

All play the same tasks with the same luck. WORKDIR/CONDITION.json has the games of a player, and a
run skips what is there; the weights after imitation are kept for GRPO to start from.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.evolve_bandits import settings
from grpo_jax.errors import UserError
from grpo_jax.models import loading
from grpo_jax.names import unknown
from grpo_jax.run import atomic, folder
from grpo_jax.run.checkpoint import Checkpoints
from grpo_jax.systems.evolve_bandits import training as verbal_bandits
from grpo_jax.systems.evolve_bandits import transcripts, words
from grpo_jax.systems.evolve_bandits.games import Games, Speaker, play, play_learner

PROMPTS = {  # history, with examples
  "base_rh": ("raw", False),
  "base_sh": ("summary", False),
  "guided_ag": ("guided", False),
  "few_shot_sh": ("summary", True),
}
TRAINED = ("oft", "oft_grpo")
LEAST = (
  "data.arms", "data.steps", "eval.games", "shots.every", "shots.count", "oft.steps", "oft.games",
  "oft.micro", "grpo.steps", "grpo.tasks", "grpo.group", "grpo.micro",
)  # fmt: skip


def check(c: Any) -> None:
  """UserError for what could only fail after the model is loaded."""
  for path in LEAST:
    group, name = path.split(".")
    if c[group][name] < 1:
      raise UserError(f"{path}={c[group][name]}: must be at least 1")
  settings.check(c.data)
  known = conditions(c)
  for name in c.conditions:
    if name not in known:
      raise unknown("conditions", name, known)
  for part, rows in (("oft", c.oft.games), ("grpo", c.grpo.tasks)):
    if rows % c[part].micro:
      raise UserError(f"{part}.micro={c[part].micro}: must divide the {rows} prompts of a step")


def conditions(c: Any) -> tuple[str, ...]:
  """Training reads whole games as one text, which lines on users do not allow."""
  trained = () if settings.contextual(c.data) else TRAINED
  return (*settings.oracles(c.data), *PROMPTS, *trained)


@dataclasses.dataclass(eq=False)
class Bench:
  """A run: its tasks, and the model, loaded when it is first asked for."""

  c: Any
  workdir: Path
  say: Any = print

  @functools.cached_property
  def oracles(self):
    return settings.oracles(self.c.data)

  @functools.cached_property
  def played(self) -> settings.Bandit:
    """What is played, and what the examples and imitation are of: the same, but for the users."""
    return settings.bandit(self.c.data, heldout=True)

  @functools.cached_property
  def taught(self) -> settings.Bandit:
    return settings.bandit(self.c.data, heldout=False)

  @property
  def family(self):
    return self.played.family

  @property
  def teacher(self):
    """The first of the oracles."""
    return next(iter(self.oracles.values()))

  @functools.cached_property
  def model(self):
    config, params, tokenizer = loading.load(self.c.model)
    return config, jax.tree.map(jax.numpy.asarray, params), tokenizer

  def key(self, what: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(self.c.seed), what)

  @functools.cached_property
  def tasks(self):
    return jax.vmap(self.family.task)(jax.random.split(self.key(0), self.c.eval.games))

  def examples(self, style: str) -> str:
    """From one trajectory of the oracle on a task of its own."""
    s = self.c.shots
    family, scene = self.taught
    draw = verbal_bandits.from_oracle(family, self.teacher, 1, s.skip + s.every * s.count)
    games, _ = draw(None, self.key(4))
    action, reward, seen = (x[0].tolist() for x in (games.action, games.reward, games.seen))
    pulls = list(zip(action, reward, strict=True))
    return words.few_shot(scene, style, pulls, seen, skip=s.skip, every=s.every, count=s.count)

  @functools.cache  # noqa: B019 one run a process
  def speaker(self, style: str, shots: bool = False) -> Speaker:
    config, _, tokenizer = self.model
    examples = self.examples(style) if shots else ""
    scene = self.played.scene
    return Speaker(config, tokenizer, scene, style, examples, bucket=64 if scene.users else 16)

  # ---- playing -----------------------------------------------------------------------------------

  @functools.cached_property
  def transcript(self):
    """The raw history, played with a cache: one program for every set of weights."""
    c = self.c
    return transcripts.player(self.speaker("raw"), self.family, c.data.steps, c.eval.greedy)

  def games(self, name: str) -> Games:
    c, luck = self.c, self.key(1)
    if name in self.oracles:
      return play_learner(self.family, self.tasks, luck, c.data.steps, self.oracles[name])
    if name in TRAINED:
      return self.transcript(self.trained(name), self.tasks, luck)
    style, shots = PROMPTS[name]
    params = self.model[1]
    if style == "raw" and not self.played.scene.users:
      return self.transcript(params, self.tasks, luck)
    choose = self.speaker(style, shots).player(params, c.eval.greedy)
    return play(self.family, self.tasks, luck, c.data.steps, choose)

  # ---- training ----------------------------------------------------------------------------------

  def trained(self, name: str) -> Any:
    return self.imitated() if name == "oft" else self.reinforced()

  def imitated(self) -> Any:
    """The weights after imitation of UCB, from the disk if they are there."""
    saves = Checkpoints(self.workdir / "oft", 1, self.say)
    try:
      shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
      if (found := saves.restore(jax.tree.map(shape, self.model[1]))) is not None:
        return found[1]
      c = self.c
      family = self.taught.family
      draw = verbal_bandits.from_oracle(family, self.teacher, c.oft.games, c.data.steps)
      params = self._train("oft", "sft", self.model[1], draw, self.key(2))
      saves.save(c.oft.steps, params, {})
      return params
    finally:
      saves.close()

  def reinforced(self) -> Any:
    c = self.c
    speaker = self.speaker("raw")
    g = c.grpo
    draw = verbal_bandits.from_policy(speaker, self.family, g.tasks, g.group, c.data.steps)
    return self._train("grpo", "grpo", self.imitated(), draw, self.key(3))

  def _train(self, part: str, method: str, params: Any, draw, key) -> Any:
    fields, log = self.c[part], []
    steps = verbal_bandits.train(
      self.speaker("raw"), params, method, draw, fields, self.c.optimizer, key
    )
    start = time.monotonic()
    for i, (metrics, weights) in enumerate(steps, 1):
      params = weights
      log.append(metrics)
      told = " ".join(f"{k} {v:.3f}" for k, v in metrics.items())
      self.say(f"{part} {i}/{fields.steps}: {told} ({time.monotonic() - start:.0f} s)")
    atomic.write_json(self.workdir / f"{part}_training.json", log)
    return params


def run(c: Any, workdir: Path, say=print) -> dict[str, Games]:
  """Games of every condition, played or read."""
  check(c)
  settings = c.copy_and_resolve_references()
  with settings.unlocked():
    del settings["conditions"]  # a folder may get more of them
  folder.save_config(settings, workdir)
  bench, out = Bench(c, workdir, say), {}
  for name in c.conditions:
    path = workdir / f"{name}.json"
    if not path.exists():
      start = time.monotonic()
      games = bench.games(name)
      fields = {k: np.asarray(v).tolist() for k, v in games._asdict().items()}
      atomic.write_json(path, fields | {"seconds": round(time.monotonic() - start, 1)})
    out[name] = read(path)
    regret = out[name].lost.sum(axis=1)
    say(f"{name}: regret {regret.mean():.2f} after {c.data.steps} pulls")
  return out


def read(path: Path) -> Games:
  found = json.loads(path.read_text())
  return Games(*(np.asarray(found[name]) for name in Games._fields))
