"""A config of the loop "fused" to a folder: a method on a token world, all seeds in one compiled
program, see whole.py."""

import dataclasses
from pathlib import Path

from grpo_jax import envs, methods
from grpo_jax.names import check_keys
from grpo_jax.train import whole
from grpo_jax.train.programs import fused


def run(c, workdir: Path, say=print) -> dict:
  """Trains `c.seeds` policies on `c.world`, from seed `c.seed` on. UserError for a bad config."""
  world, sizes, program = prepare(c)

  def read(curves: fused.Curves) -> whole.Told:
    accuracy = curves.accuracy
    final = {
      "accuracy_before": accuracy[:, 0].mean(),
      "accuracy_after": accuracy[:, -1].mean(),
      "accuracy_lowest_seed": accuracy[:, -1].min(),
      "warm_steps": curves.warm_steps.mean(),
      "measured_on": sizes.of(world).label,
    }
    evals = {"accuracy": accuracy, "reward": curves.reward, "length": curves.held.length}
    return whole.Told(curves.train, evals, final, {"updates_a_second": c.seeds * sizes.updates})

  what = f"{sizes.updates} updates of {sizes.prompts} x {sizes.group} rollouts on {world.name}"
  return whole.run(c, workdir, say, program, sizes.eval_every, what, read)


def prepare(c):
  """(world, sizes, run): everything that can be refused, before anything is compiled."""
  whole.check_seeds(c)
  world = envs.get(c.world, **c.world_args.to_dict())
  method = methods.get(c.method, **c.method_args.to_dict())
  given = c.plan.to_dict()
  check_keys("plan", given, [f.name for f in dataclasses.fields(fused.Sizes)])
  sizes = fused.Sizes(**given)
  m = c.model
  config = fused.tiny_config(world.vocab, hidden=m.hidden, layers=m.layers, heads=m.heads)
  sizes.of(world)  # refuses a world with too few prompts to hold some out
  return world, sizes, fused.make_run(world, method, sizes, config)
