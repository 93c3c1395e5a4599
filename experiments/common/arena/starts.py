"""Warm starts, which all arms of a world share: made once a world and seed, by their own programs.

What a warm start does is decided by the world, the seed and the plan's fields `warm_*`,
`world*` and `split`; neither method nor learning rate has a part in it.
"""

import time

import jax
import jax.numpy as jnp

from grpo_jax.envs.world import World
from grpo_jax.train.programs import fused
from grpo_jax.train.programs.seeds import over_seeds


class Starts:
  """`at_once` of them in one program, as `seeds.over_seeds` runs them; `say` hears of each call."""

  def __init__(self, at_once: int = 1, say=lambda text: None):
    self.at_once, self.say, self.made = at_once, say, {}

  def __call__(self, name: str, world: World, plan: fused.Sizes, seeds: list[int]):
    """(params, steps i32) of these seeds, stacked. `name`: tells worlds apart."""
    fields = {k: v for k, v in vars(plan).items() if k.startswith(("warm", "world", "split"))}
    key = name, *fields.items()
    if key not in self.made:
      self.made[key] = over_seeds(fused.make_start(world, plan)), {}
    program, known = self.made[key]
    missing = [seed for seed in dict.fromkeys(seeds) if seed not in known]
    for i in range(0, len(missing), self.at_once):
      part = missing[i : i + self.at_once]
      full = part + part[:1] * (self.at_once - len(part))
      begun = time.monotonic()
      found = jax.device_get(program(jnp.asarray(full, jnp.int32)))
      steps = ", ".join(str(x) for x in found[1][: len(part)])
      head = f"{name:>18} {'warm start':<14} {len(part)} runs"
      self.say(f"{head} in {time.monotonic() - begun:5.1f} s   {steps} steps")
      for j, seed in enumerate(part):
        known[seed] = jax.tree.map(lambda x, j=j: x[j], found)
    return jax.tree.map(lambda *x: jnp.stack(x), *(known[seed] for seed in seeds))
