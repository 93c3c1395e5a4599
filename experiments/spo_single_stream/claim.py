"""SPO (paper 68): 64 prompts x 1 with a tracker against 8 x 8 with GRPO's groups, on sequences.

The dial is how much prompts differ in difficulty: letters to be reversed are five in every prompt,
or from two, which the start can do, to eight, which it can't.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import gates, study
from experiments.common.statements import claim, side
from grpo_jax import envs, methods
from grpo_jax.core import groups, units, weights
from grpo_jax.models import policy
from grpo_jax.rollout import play
from grpo_jax.train.programs import draw, fused
from grpo_jax.types import Credit, Flat

CLAIM = (
  "One completion of each of 64 prompts, with a persistent success tracker as baseline, advantages "
  "normalised over the batch and prompts drawn by what the tracker knows, wastes no samples on "
  "degenerate groups, learns more smoothly and to a higher accuracy than eight completions of "
  "eight prompts with GRPO's group baseline; the tracker is better than the batch's mean."
)
NOTES = (
  "512 training prompts, met about 20 times each; accuracy is on other prompts, drawn uniformly "
  "whatever the curriculum. No offline estimate of the start: trackers begin at 1/2. The batch's "
  "mean and the tracker alone draw prompts uniformly. The oracle's baseline is the policy's exact "
  "success rate, the probability of the one right answer; the placebo's is the tracker of another "
  "prompt of the batch. 'agreement' is the mean cosine between gradients of 32 independent batches "
  "at the end of SPO, by its tracker (uniform draws), by the batch's mean and by GRPO's groups; "
  "'correlation' that of tracker and exact success rate over the training prompts. 'Falls' are "
  "what accuracy loses between evaluations, summed."
)
UNTESTED = (
  "throughput with generation times that vary, tools and long horizons, maj@32 and pass@k, an "
  "offline estimate of the start, models above 0.1M parameters"
)
CHANGES = ("advantage", "selection", "rollout")
HISTORY = ()
CURVES = ("accuracy", "train:idle", "train:correct", "train:drift")
PROBED = {"spo": ("agreement", "agreement_mean", "agreement_grpo", "correlation")}
_REPEATS = 32


def get_config(variant: str = ""):
  spo = lambda role, knob=None, **args: study.arm(role, "spo_single_stream", args, knob=knob)
  return study.config(
    "spo_single_stream",
    variant,
    world="sequence",
    params={"task": "reverse"},
    plan={
      "updates": 160,
      "eval_every": 20,
      "prompts": 64,
      "group": 1,
      "problems": 512,
      "heldout": 512,
      "eval_temperature": 1.0,
      "warm_steps": 600,
      "warm_until": 0.3,
    },
    dial=(
      "letters",
      {
        "five": {"params": {"items": 5, "shortest": 5}},
        "two to eight": {"params": {"items": 8, "shortest": 2}},
      },
    ),
    arms={
      "grpo": study.arm("baseline", "grpo", plan={"prompts": 8, "group": 8}),
      "spo": spo("main", ("drift_half", (0.06, 0.3))),
      "tracker": spo("baseline", curriculum=False),
      "batch_mean": spo("baseline", curriculum=False, baseline="none", rho=0.875),
      "exact": spo("oracle"),
      "shuffled": spo("placebo"),
      "constant": spo("ablation", rho=0.875),
      "no_whitening": spo("ablation", whiten=False),
    },
    lrs=(1e-4, 3e-4, 1e-3),
  )


def alter(cell, method):
  """The oracle is shown the right answer for its probability alone; the placebo another's value."""
  if cell.arm == "shuffled":

    def credit(state, rollouts, batch):
      other = rollouts.replace(prompt=jnp.roll(rollouts.prompt, 1))
      return method.credit(state, other, batch)

    return dataclasses.replace(method, credit=credit)
  if cell.arm != "exact":
    return method
  own = lambda rollouts: rollouts.alive & ~rollouts.given

  def remember(state, rollouts, batch, now):
    return method.remember(state, rollouts.replace(alive=own(rollouts)), batch, now)

  def credit(state, rollouts, batch):
    del state
    known = jnp.sum(batch.logp_old * batch.mask, axis=1).reshape(rollouts.given.shape)
    rate = jnp.exp(jnp.sum(jnp.where(rollouts.given, known, 0), axis=1, keepdims=True))
    gain = jnp.where(own(rollouts), rollouts.correct.astype(rate.dtype) - rate, 0)
    adv = groups.whiten(gain, own(rollouts), ddof=1, eps=1e-8)
    adv = jnp.where(own(rollouts), adv, 1)  # of what is shown: without weight, and not idle
    weight = weights.token_mean(batch, rollouts, own(rollouts))
    return Credit(adv=units.of_owner(adv, batch), weight=weight)

  needs = (*method.needs, "logp_old")
  plan = Flat(demonstrate=True)
  return dataclasses.replace(method, credit=credit, remember=remember, needs=needs, plan=plan)


def probe(cell):
  """Of the arm "spo": how well gradients of independent batches agree, and trackers with truth."""
  if cell.arm != "spo":
    return None
  world = envs.get(cell.spec["world"], **cell.spec["params"])
  config, plan = fused.tiny_config(world.vocab), fused.Sizes(**cell.spec["plan"])
  forward = policy.make_forward(config, chunk=0)
  known, count = plan.of(world), plan.problems

  def agreement(method, memory, params, key, prompts, group):
    def gradient(key):
      pick, sample = jax.random.split(key)
      ids = draw.choose_problems(pick, count, prompts)
      keys = jax.random.split(sample, prompts)
      problems = known.train(ids)
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
  def all_of_it(params, memory, seed):
    key = jax.random.fold_in(jax.random.key(11), seed)
    spo = lambda **args: methods.get("spo_single_stream", curriculum=False, rho=0.9, **args)
    size, ids = plan.prompts, jnp.arange(count)
    _, batch = play.demonstrate(world, known.train(ids), ids)
    rate = jnp.exp(jnp.sum(batch.mask * forward(params, batch).logp, axis=1))
    found = {
      "agreement": agreement(spo(), memory, params, key, size, 1),
      "agreement_mean": agreement(spo(baseline="none"), memory, params, key, size, 1),
      "agreement_grpo": agreement(methods.get("grpo"), (), params, key, max(size // 8, 1), 8),
    }
    return found | {"correlation": jnp.corrcoef(rate, memory.value)[0, 1]}

  return lambda state, start, seed: all_of_it(state.params, state.method_state, seed)


def statements(d):
  falls = lambda arm: np.maximum(-np.diff(d(arm, "accuracy"), axis=1), 0).sum(axis=1)
  more = lambda name: d.final("spo", f"more:{name}")
  return [
    gates.ideal(d),
    gates.headroom(d),
    gates.learned(d),
    gates.disease("degenerate groups of GRPO", d.area("grpo", "train:zero_variance"), ">=", 0.3),
    gates.acts("trackers follow the exact success rates", more("correlation"), ">=", 0.3),
    gates.budgets(d, "rollouts"),
    claim(
      "accuracy at the end: SPO above GRPO",
      d.final("spo"),
      ">",
      d.final("grpo"),
      quote="attains higher accuracy than GRPO",
    ),
    claim(
      "falls of accuracy: GRPO above SPO",
      falls("grpo"),
      ">",
      falls("spo"),
      quote="converges more smoothly",
      margin=0.01,
      why="0.01 of the range of accuracy",
    ),
    claim(
      "samples without advantage: GRPO above SPO",
      d.area("grpo", "train:idle"),
      ">",
      d.area("spo", "train:idle"),
      quote="eliminating computation wasted on degenerate groups",
    ),
    claim(
      "accuracy over training: SPO above the batch's mean alone",
      d.area("spo"),
      ">",
      d.area("batch_mean"),
      quote="SPO's gains stem from its principled approach to baseline estimation",
    ),
    side("accuracy over training: SPO above GRPO", d.area("spo"), ">", d.area("grpo")),
    side(
      "the tracker without its curriculum above the batch's mean",
      d.area("tracker"),
      ">",
      d.area("batch_mean"),
    ),
    side("the curriculum above uniform draws", d.area("spo"), ">", d.area("tracker")),
    side("SPO above its placebo", d.area("spo"), ">", d.area("shuffled")),
    side(
      "agreement of gradients: SPO above GRPO",
      more("agreement"),
      ">",
      more("agreement_grpo"),
      margin=0.01,
    ),
    side(
      "agreement of gradients: SPO above the batch's mean",
      more("agreement"),
      ">",
      more("agreement_mean"),
      margin=0.01,
    ),
    side("adaptive above constant forgetting", d.area("spo"), ">", d.area("constant")),
    side("whitened above centred", d.area("spo"), ">", d.area("no_whitening")),
  ]
