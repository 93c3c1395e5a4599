"""IGPO (card 53) against GRPO and a constant bonus a call, on look-up over two links."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import study
from experiments.common.statements import more, not_less
from grpo_jax import envs
from grpo_jax.core import grids, turns
from grpo_jax.models import policy
from grpo_jax.rollout import belief, play
from grpo_jax.train.programs import fused

CLAIM = (
  "Rewarding each turn with what it adds to the policy's own probability of the right answer "
  "leaves fewer rollouts without a learning signal and learns a multi-turn task faster than the "
  "outcome alone and than a constant bonus a call, without making episodes longer."
)
NOTES = (
  "Rewards of turns are normalised jointly with the outcomes (the paper's equation, second-hand); "
  "no KL, no penalty (every episode ends by itself), gamma 1. The released baseline by token "
  "position has no arm. 'useful' is the world's label of a call that tells the next link."
)
CURVES = (
  ("lookup", "accuracy"),
  ("lookup", "part:links"),
  ("lookup", "part:calls"),
  ("lookup", "train:idle"),
  ("lookup", "train:zero_variance"),
)


def get_config(variant: str = ""):
  own = {"beta_kl": 0.0, "penalty": None}
  igpo = lambda **args: {"method": "igpo", "args": own | args}
  return study.config(
    "igpo",
    variant,
    plan={
      "updates": 160,
      "eval_every": 20,
      "prompts": 16,
      "group": 8,
      "heldout": 256,
      "split": "id",
      "eval_temperature": 1.0,
      "warm_steps": 400,
      "warm_until": 0.05,
    },
    worlds={"lookup": {"world": "lookup", "params": {"keys": 8, "hops": 2, "calls": 4}}},
    arms={
      "grpo": {"method": "grpo"},
      "constant": igpo(gain="constant", bonus=0.1),
      "joint": igpo(gain="prob"),
      "separate": igpo(gain="prob", normalize="separate"),
      "log": igpo(gain="log"),
    },
    lr=5e-4,
  )


def probe(cell):
  """Of the arm "joint": the correlation of a call's gain, at the end, with its being useful."""
  if cell.arm != "joint":
    return None
  world = envs.get(cell.spec["world"], **cell.spec["params"])
  config = fused.tiny_config(world.vocab)
  forward = policy.make_forward(config, chunk=0)

  @jax.jit
  def both(params, seed):
    ids = 1000 + jnp.arange(64)
    problems = world.problems(1, ids)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(7), seed), 64)
    rollouts, batch = play.play(world, config, params, problems, ids, keys, group=4)
    there = grids.exists(batch, rollouts, world.turns)
    known = jnp.exp(belief.answer_logp(belief.gold_of(world, problems), forward, params, batch))
    gain = turns.gains(known, batch, rollouts, there)
    assert batch.unit_reward is not None
    useful = grids.to_grid(batch.unit_reward, batch, rollouts, world.turns) > 0
    return gain, useful, there & ~grids.last(there)

  def measure(state, start, seed):
    gain, useful, calls = (np.asarray(x) for x in both(state.params, seed))
    x, y = gain[calls], useful[calls].astype(float)
    degenerate = x.size < 2 or x.std() == 0 or y.std() == 0
    return {"correlation": 0.0 if degenerate else np.corrcoef(x, y)[0, 1]}

  return measure


def statements(d):
  area = lambda arm: d.area("lookup", arm)
  idle = lambda arm: d.area("lookup", arm, "train:idle")
  return [
    more("success over training: IGPO above GRPO", area("joint"), area("grpo"), margin=0.01),
    more("IGPO above a constant bonus a call", area("joint"), area("constant"), margin=0.01),
    more("rollouts without advantage: GRPO above IGPO", idle("grpo"), idle("joint"), margin=0.01),
    more(
      "correlation of a call's gain with its being useful above 0",
      d.final("lookup", "joint", "more:correlation"),
      0.0,
    ),
    not_less(
      "calls an episode: IGPO at most half a call above GRPO",
      d.final("lookup", "grpo", "part:calls"),
      d.final("lookup", "joint", "part:calls"),
      margin=0.5,
    ),
  ]
