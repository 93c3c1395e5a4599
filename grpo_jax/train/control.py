"""A config of the loop "control" to a folder: all seeds in one compiled program, then its files.

  config.json     the config
  metrics.jsonl   one row an update, means over seeds; eval rows; steps are updates
  curves.npz      what every seed did, [seeds, updates] and [seeds, evals]
  final.json      the last line of stdout

The program leaves nothing before its end, so a run that was cut off starts anew; one that has
ended is only read.
"""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import methods
from grpo_jax.envs import control as envs
from grpo_jax.errors import UserError
from grpo_jax.models.mlp import MLPConfig
from grpo_jax.names import check_keys
from grpo_jax.run import folder
from grpo_jax.run.metrics import MetricsWriter
from grpo_jax.train.programs import control
from grpo_jax.train.programs.seeds import over_seeds


def run(c, workdir: Path, say=print) -> dict:
  """Trains `c.seeds` agents on `c.env`, from seed `c.seed` on. UserError for a bad config."""
  env, plan, program = prepare(c)
  folder.check_folder(c, workdir)
  if (final := folder.final_of(workdir)) is not None:
    folder.say_again(workdir, final, "use another --workdir to run it again")
    return final
  folder.save_config(c, workdir)
  args = c.seed + jnp.arange(c.seeds), jnp.full((c.seeds,), plan.lr)
  begun = time.monotonic()
  compiled = over_seeds(program).lower(*args).compile()
  compile_s = time.monotonic() - begun
  actions = plan.updates * plan.envs * plan.steps
  say(f"{c.seeds} seeds of {actions} steps of {env.name}; compiled in {compile_s:.1f} s")
  begun = time.monotonic()
  _, curves = jax.block_until_ready(compiled(*args))
  wall_s = time.monotonic() - begun
  train = {k: np.asarray(v) for k, v in curves.train.items()}
  reward = np.asarray(curves.reward)
  arrays: dict = {"eval_return": reward, **train}
  np.savez_compressed(workdir / "curves.npz", **arrays)  # pyright: ignore
  writer = MetricsWriter(workdir, plan.updates, tensorboard=False, keep_below_step=0)
  for i in range(plan.updates):
    writer.write(i + 1, {k: v[:, i].mean() for k, v in train.items()})
  for i, mean in enumerate(reward.mean(axis=0)):
    writer.write(i * plan.every, {"eval_return": mean}, kind="eval")
  final = {
    "return": train["return"][:, -1].mean(),
    "return_lowest_seed": train["return"][:, -1].min(),
    "greedy_return": reward[:, -1].mean(),
    "greedy_return_lowest_seed": reward[:, -1].min(),
    "env_steps_a_seed": actions,
    "env_steps_a_second": c.seeds * actions / wall_s,
    "compile_s": compile_s,
    "wall_s": wall_s,
  }
  writer.finish(final)
  return final


def prepare(c):
  """(environment, plan, run): everything that can be refused, before anything is compiled."""
  for field in ("seed", "seeds"):
    if not isinstance(c[field], int) or c[field] < (field == "seeds") or c[field] >= 2**31:
      raise UserError(f"{field}={c[field]!r}: must be a whole number, seeds at least 1")
  env = envs.get(c.env, **c.env_args.to_dict())
  method = methods.get(c.method, **c.method_args.to_dict())
  fields = [f.name for f in dataclasses.fields(control.Sizes)]
  given = c.plan.to_dict()
  check_keys("plan", given, fields)
  plan = control.Sizes(**given)
  config = MLPConfig(
    env.observation, env.actions, env.continuous, tuple(c.model.hidden), c.model.activation
  )
  return env, plan, control.make_run(env, method, plan, config)
