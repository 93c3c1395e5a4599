"""A config of the loop "control" to a folder: all seeds in one compiled program, see whole.py."""

import dataclasses
from pathlib import Path

from grpo_jax import methods
from grpo_jax.envs import control as envs
from grpo_jax.models.mlp import MLPConfig
from grpo_jax.names import check_keys
from grpo_jax.train import whole
from grpo_jax.train.programs import control


def run(c, workdir: Path, say=print) -> dict:
  """Trains `c.seeds` agents on `c.env`, from seed `c.seed` on. UserError for a bad config."""
  env, sizes, program = prepare(c)
  actions = sizes.updates * sizes.envs * sizes.steps

  def read(curves: control.Curves) -> whole.Told:
    train, reward = curves.train, curves.reward
    final = {
      "return": train["return"][:, -1].mean(),
      "return_lowest_seed": train["return"][:, -1].min(),
      "greedy_return": reward[:, -1].mean(),
      "greedy_return_lowest_seed": reward[:, -1].min(),
      "env_steps_a_seed": actions,
    }
    rates = {"env_steps_a_second": c.seeds * actions}
    return whole.Told(train, {"return": reward}, final, rates)

  what = f"{actions} steps of {env.name}"
  return whole.run(c, workdir, say, program, sizes.every, what, read)


def prepare(c):
  """(environment, sizes, run): everything that can be refused, before anything is compiled."""
  whole.check_seeds(c)
  env = envs.get(c.env, **c.env_args.to_dict())
  method = methods.get(c.method, **c.method_args.to_dict())
  given = c.plan.to_dict()
  check_keys("plan", given, [f.name for f in dataclasses.fields(control.Sizes)])
  sizes = control.Sizes(**given)
  config = MLPConfig(
    env.observation, env.actions, env.continuous, tuple(c.model.hidden), c.model.activation
  )
  return env, sizes, control.make_run(env, method, sizes, config)
