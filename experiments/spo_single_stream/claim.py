"""SPO (paper 68): 64 prompts x 1 with a tracker against 8 x 8 with a group baseline."""

import jax
import jax.numpy as jnp

from experiments.common import first_protocol as study
from experiments.common.first_protocol import more, not_less
from grpo_jax import envs, methods
from grpo_jax.models import policy
from grpo_jax.rollout import play
from grpo_jax.train.programs import draw, fused

CLAIM = (
  "One completion of each of 64 prompts with a persistent success tracker as baseline has a less "
  "noisy gradient than eight completions of eight prompts with GRPO's group baseline, wastes fewer "
  "samples on groups without a signal and ends no worse; the tracker is better than the mean of "
  "the batch alone."
)
NOTES = (
  "300 fixed prompts; what counts is the share of correct samples on them (train:correct): a model "
  "this small learns them by heart, and accuracy on other prompts does not rise (by that "
  "measure, too, all holds but the last statement, which stays open). Arms but "
  "'curriculum' draw prompts uniformly. "
  "'agreement' is the mean cosine between gradients of 48 independent batches (prompts and "
  "completions drawn anew) at the last state of the arm 'tracker', for its estimator and for "
  "GRPO's, the less noise the higher. Drift as in the release. No offline estimate of the start "
  "model: trackers begin at 1/2."
)
CURVES = (
  ("chain", "accuracy"),
  ("chain", "train:correct"),
  ("chain", "train:idle"),
  ("chain", "train:drift"),
)
_REPEATS = 48


def get_config(variant: str = ""):
  spo = lambda **args: {"method": "spo_single_stream", "args": {"curriculum": False} | args}
  return study.config(
    "spo_single_stream",
    variant,
    plan={
      "updates": 300,
      "eval_every": 30,
      "prompts": 64,
      "group": 1,
      "problems": 300,
      "heldout": 512,
      "eval_temperature": 1.0,
      "warm_steps": 600,
      "warm_until": 0.3,
    },
    worlds={"chain": {"world": "chain", "params": {"steps": 2, "modulus": 7, "slack": 0}}},
    arms={
      "tracker": spo(),
      "curriculum": spo(curriculum=True),
      "batch_mean": spo(baseline="none", rho=0.875),
      "no_baseline": spo(baseline="none", whiten=False, rho=0.875),
      "grpo": {"method": "grpo", "plan": {"prompts": 8, "group": 8}},
    },
    lr=1e-3,
  )


def probe(cell):
  """Of the arm "tracker": how well gradients of independent batches agree, by both estimators."""
  if cell.arm != "tracker":
    return None
  world = envs.get(cell.spec["world"], **cell.spec["params"])
  config, plan = fused.tiny_config(world.vocab), cell.spec["plan"]
  forward = policy.make_forward(config, chunk=0)
  count = plan.get("problems", 4096)

  def agreement(method, memory, params, key, prompts, group):
    def gradient(key):
      pick, sample = jax.random.split(key)
      ids = draw.choose_problems(pick, count, prompts)
      problems = world.problems(0, ids)
      keys = jax.random.split(sample, prompts)
      rollouts, batch = play.play(world, config, params, problems, ids, keys, group=group)
      credit = method.credit(memory, rollouts, batch)
      loss = lambda p: method.loss(forward(p, batch), batch, credit)[0]
      grad = jax.tree.leaves(jax.grad(loss)(params))
      flat = jnp.concatenate([g.reshape(-1) for g in grad])
      return flat / jnp.maximum(jnp.linalg.norm(flat), 1e-12)

    unit = jax.lax.map(gradient, jax.random.split(key, _REPEATS))
    total = jnp.sum(unit, axis=0)
    return (jnp.sum(total * total) - jnp.sum(unit * unit)) / (_REPEATS * (_REPEATS - 1))

  @jax.jit
  def both(params, memory, seed):
    key = jax.random.fold_in(jax.random.key(11), seed)
    size = plan["prompts"]
    mine = methods.get("spo_single_stream", curriculum=False)
    tracker = agreement(mine, memory, params, key, size, 1)
    return tracker, agreement(methods.get("grpo"), (), params, key, max(size // 8, 1), 8)

  def measure(state, start, seed):
    tracker, group = both(state.params, state.method_state[0], seed)
    return {"agreement": tracker, "agreement_grpo": group}

  return measure


def statements(d):
  more_of = lambda name: d.final("chain", "tracker", f"more:{name}")
  idle = lambda arm: d("chain", arm, "train:idle")[:, -1]
  correct = lambda arm: d("chain", arm, "train:correct")
  return [
    more(
      "agreement of gradients: tracker above GRPO's groups",
      more_of("agreement"),
      more_of("agreement_grpo"),
      margin=0.01,
    ),
    more("samples without advantage at the end: GRPO above tracker", idle("grpo"), idle("tracker")),
    not_less(
      "correct samples at the end: tracker not below GRPO",
      correct("tracker")[:, -1],
      correct("grpo")[:, -1],
      margin=0.01,
    ),
    more(
      "correct samples over training: tracker above the batch mean alone",
      correct("tracker").mean(axis=1),
      correct("batch_mean").mean(axis=1),
      margin=0.005,
    ),
  ]
