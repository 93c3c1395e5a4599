"""Warm starts: made once a world, setting and seed, shared by all arms, kept on disk.

What a warm start does is decided by the world, the seed and the plan's fields `warm_*`,
`world*` and `split`; neither method nor learning rate has a part in it.
"""

import hashlib
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.fused_runs import QUICK
from experiments.common.study import Cell
from grpo_jax.train.programs import fused
from grpo_jax.train.programs.seeds import over_seeds


class Starts:
  def __init__(self, folder: Path, say=lambda text: None, quick: bool = False):
    self.folder, self.say, self.quick = folder, say, quick
    self.programs, self.made = {}, {}

  def __call__(self, cell: Cell, world, plan, seeds: list[int]):
    """(params, steps i32) of these seeds, stacked. `world`: of whose solutions they learn."""
    fields = {k: v for k, v in vars(plan).items() if k.startswith(("warm", "world", "split"))}
    spec = {"world": cell.spec["world"], "params": cell.spec["params"], "plan": fields}
    key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
    known = lambda seed: self._known(key, seed, world, plan)
    missing = [seed for seed in dict.fromkeys(seeds) if known(seed) is None]
    if missing and key not in self.programs:
      program = over_seeds(fused.make_start(world, plan)).lower(jnp.asarray(seeds, jnp.int32))
      self.programs[key] = program.compile(compiler_options=QUICK if self.quick else None)
    for i in range(0, len(missing), len(seeds)):
      self._make(key, missing[i : i + len(seeds)], len(seeds), cell.setting)
    return jax.tree.map(lambda *x: np.stack(x), *(known(seed) for seed in seeds))

  def _make(self, key: str, seeds: list[int], at_once: int, name: str) -> None:
    begun = time.monotonic()
    full = seeds + seeds[:1] * (at_once - len(seeds))
    found = jax.device_get(self.programs[key](jnp.asarray(full, jnp.int32)))
    self.folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds):
      one = jax.tree.map(lambda x, i=i: x[i], found)
      path = self.folder / f"{key}-{seed}.npz"
      half = path.with_suffix(".half.npz")
      np.savez(half, **{str(j): x for j, x in enumerate(jax.tree.leaves(one))})
      half.replace(path)
      self.made[key, seed] = one
    steps = ", ".join(str(int(x)) for x in found[1][: len(seeds)])
    self.say(f"{name:>12} warm start of seeds {', '.join(map(str, seeds))}: {steps} steps, "
             f"{time.monotonic() - begun:.1f} s")  # fmt: skip

  def _known(self, key: str, seed: int, world, plan):
    path = self.folder / f"{key}-{seed}.npz"
    if (key, seed) not in self.made and path.is_file():
      shapes = jax.eval_shape(fused.make_start(world, plan), jnp.int32(0))
      with np.load(path) as kept:
        leaves = [kept[str(i)] for i in range(len(kept.files))]
      self.made[key, seed] = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return self.made.get((key, seed))
