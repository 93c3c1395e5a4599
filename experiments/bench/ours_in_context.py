"""Online evaluation of an in-context learner, ours, timed in a process of its own.

`python -m experiments.bench.ours_in_context FOLDER`: `--tasks` bandits at once, the horizon's pulls
of each as one compiled program with a key-value cache (grpo_jax/rollout/in_context/play.py).
`--export` first writes FOLDER: random weights, contexts that this model met, and its logits there,
for the peer to load and to compare with.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import record
from grpo_jax.core.transitions import Transitions
from grpo_jax.envs.contextual import bandit
from grpo_jax.errors import UserError
from grpo_jax.models.in_context import transformer as model
from grpo_jax.rollout.in_context import play as in_context
from grpo_jax.rollout.in_context.tokens import Layout
from grpo_jax.train.programs.in_context import make_config, widened


def arguments(argv=None):
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("folder", type=Path)
  parser.add_argument("--export", action="store_true")
  for name, default in (
    ("tasks", 2048),
    ("part", 512),  # tasks that step together: their caches must fit the processor's
    ("horizon", 100),
    ("arms", 5),
    ("hidden", 32),
    ("layers", 4),
    ("heads", 4),
    ("repeats", 5),
    ("compared", 16),  # contexts whose logits are written
  ):
    parser.add_argument(f"--{name}", type=int, default=default)
  return parser.parse_args(argv)


def learner(a):
  """(layout, config, parameters): DPT's tokens of a Gaussian bandit, the weights of a fresh model
  widened as configs/dpt.py has it, so that attention is not uniform and arms differ."""
  layout = Layout(bandit.make(arms=a.arms, steps=a.horizon, noise=0.3), a.horizon)
  config = make_config(layout, hidden=a.hidden, layers=a.layers, heads=a.heads)
  return layout, config, widened(model.init(config, jax.random.key(0)))


def evaluation(a, layout, config, greedy: bool = False):
  """f(params, key, tasks) -> Pulls of fresh tasks, `part` of them at a time."""

  def some(params, key, count: int):
    draw, play = jax.random.split(key)
    tasks = jax.vmap(layout.family.task)(jax.random.split(draw, count))
    return in_context.play_bandit(layout, config, params, tasks, play, a.horizon, greedy)

  def run(params, key, count: int = a.tasks):
    if count <= a.part:
      return some(params, key, count)
    parts = jax.lax.map(lambda k: some(params, k, a.part), jax.random.split(key, count // a.part))
    return jax.tree.map(lambda x: x.reshape(count, -1), parts)

  return run


def export(a) -> None:
  """weights.npz by path ("layers/0/qkv"); contexts.npz: greedy episodes and the logits there."""
  layout, config, params = learner(a)
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  a.folder.mkdir(parents=True, exist_ok=True)
  weights: dict = {"/".join(k.key for k in path): np.asarray(x) for path, x in flat}
  np.savez(a.folder / "weights.npz", **weights)
  pulls = evaluation(a, layout, config, greedy=True)(params, jax.random.key(1), a.compared)
  ones = jnp.ones((a.compared, a.horizon, 1))
  seen = Transitions(state=ones, action=pulls.action, next_state=ones, reward=pulls.reward)
  logits = in_context.answers(layout, config, params, ones[:, 0], seen)
  # The cache's own choices, which are what is timed, beside those of the whole sequence.
  assert jnp.mean(jnp.argmax(logits[:, :-1], -1) == pulls.action) > 0.99
  np.savez(
    a.folder / "contexts.npz",
    action=np.asarray(pulls.action),
    reward=np.asarray(pulls.reward),
    logits=np.asarray(logits),
  )


def main(argv: list[str] | None = None) -> dict:
  a = arguments(argv)
  if a.tasks > a.part and a.tasks % a.part:
    raise UserError(f"--tasks={a.tasks}: must be a multiple of --part={a.part}")
  if a.export:
    export(a)
    return {"exported": a.compared}
  layout, config, params = learner(a)
  start = time.perf_counter()
  run = jax.jit(evaluation(a, layout, config)).lower(params, jax.random.key(0)).compile()
  compile_s = time.perf_counter() - start
  jax.block_until_ready(run(params, jax.random.key(0)))
  timer, lost = record.Repeats(), []
  for i in range(a.repeats):
    pulls = timer(lambda key: jax.block_until_ready(run(params, key)), jax.random.key(i + 1))
    lost.append(float(jnp.mean(jnp.sum(pulls.suboptimality, axis=1))))
  return timer.summary(
    a.tasks,
    framework="grpo_jax",
    versions={"jax": jax.__version__},
    tasks=a.tasks,
    compile_s=round(compile_s, 2),
    regret=round(statistics.mean(lost), 2),
  )


if __name__ == "__main__":
  record.emit(main(sys.argv[1:]))
