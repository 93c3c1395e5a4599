"""SPO by segments (paper 16), chains and trees, against GRPO and PPO, on answers of several hops.

The dial is the number of hops: a wrong one decides the answer where it is made and shows only at
the end, so the more of them there are, the less the outcome says of any one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import gates, study
from experiments.common.statements import claim, side
from grpo_jax import envs, methods
from grpo_jax.core import units, weights
from grpo_jax.rollout import chain, plans
from grpo_jax.train.programs import fused
from grpo_jax.types import Chain, Credit

CLAIM = (
  "Advantages of segments, by Monte Carlo values at their borders (chain) or by branching (tree), "
  "follow the true change of value more closely than GRPO's, and with as many episodes they teach "
  "answers of several steps better than GRPO and PPO."
)
NOTES = (
  "An episode is a completion that is trained on, as the paper counts: continuations that value a "
  "chain's cuts are beside it, and the sides say how many tokens were sampled. All arms take the "
  "same prompts, 8 episodes each and two optimizer steps a batch; a tree has 2 x 2 x 2 paths, a "
  "hop a depth. The paper's 9 continuations are 4 here, its 8 to 16 steps 2. 'follow' is the "
  "correlation of advantages with the change of value, by 64 continuations of each prefix, of the "
  "start policy, over the tokens of probability below 0.9; 'outcome' that of GRPO's on the same "
  "completions. The oracle is GRPO's loss with hop by hop advantages: right or wrong, minus the "
  "batch's mean at that hop, 0 after the first mistake. PPO's critic is a head on the policy."
)
UNTESTED = (
  "language: GSM8K, MATH500, long chains of thought, replayed edges; models above 0.1M parameters; "
  "a critic of its own for PPO"
)
CHANGES = ("advantage", "weight", "rollout")
HISTORY = ()
CURVES = ("accuracy", "part:right", "train:zero_variance", "train:sampled")
PROBED = {"grpo": ("chain", "outcome", "known")}
_SURE = 0.9
_CHAIN = {"beta_kl": 0.0, "interval": 1, "samples": 4}


def get_config(variant: str = ""):
  tree = {"beta_kl": 0.0, "form": "tree", "branching": (2, 2, 2), "segment_tokens": 2}
  items = lambda n: {"params": {"items": n}}
  return study.config(
    "spo_segment",
    variant,
    world="sequence",
    plan={
      "updates": 120,
      "eval_every": 20,
      "prompts": 16,
      "group": 8,
      "mini": 2,
      "heldout": 512,
      "eval_temperature": 1.0,
      "warm_steps": 600,
      "warm_until": 0.3,
    },
    dial=("letters", {"four": items(4), "seven": items(7)}),
    arms={
      "grpo": study.arm("baseline", "grpo"),
      "chain": study.arm("main", "spo_segment", _CHAIN),
      "tree": study.arm("baseline", "spo_segment", tree),
      "ppo": study.arm("baseline", "ppo"),
      "known": study.arm("oracle", "grpo"),
    },
    lrs=(1e-4, 3e-4, 1e-3),
  )


def alter(cell, method):
  """The oracle is told which hop was the first wrong one."""
  if cell.arm != "known":
    return method

  def credit(state, rollouts, batch):
    right = _right(batch, rollouts)
    on = jnp.cumprod(jnp.pad(right, ((0, 0), (1, 0)), constant_values=1)[:, :-1], axis=1)
    rate = jnp.sum(on * right, axis=0) / jnp.maximum(jnp.sum(on, axis=0), 1)
    adv = units.masked(on * (right - rate[None]), batch)
    weight = weights.token_mean(batch, rollouts)
    return Credit(adv=units.pool_mean(adv, batch), adv_token=adv, weight=weight)

  return dataclasses.replace(method, credit=credit)


def _right(batch, rollouts):
  """f32[R, T]: 1 where the letter is the right one, and at the end where all is right."""
  letters = jnp.repeat(batch.prompt_tokens[:, -2::-1], rollouts.reward.shape[1], axis=0)
  right = letters == batch.tokens[:, :-1]
  right = jnp.concatenate([right, rollouts.correct.reshape(-1, 1)], axis=1)
  return right.astype(jnp.float32)


def probe(cell):
  """Of the start: how advantages follow the change of value, on the same completions."""
  if cell.arm != "grpo":
    return None
  world = envs.get(cell.spec["world"], **cell.spec["params"])
  segments, outcome = methods.get("spo_segment", **_CHAIN), methods.get("grpo")
  known = alter(dataclasses.replace(cell, arm="known"), outcome)
  config = fused.tiny_config(world.vocab)
  ids = jnp.arange(16)
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))

  @jax.jit
  def both(params, seed):
    key = jax.random.fold_in(jax.random.key(13), seed)
    own, apart = fold(key, ids), fold(jax.random.fold_in(key, 1 << 20), ids)
    problems = world.problems(1, ids)
    game = plans.Game(world, config, params, problems, ids, own, 8, ids.size)
    rollouts, batch, *_ = plans.of(segments.plan).play(segments.plan, game)
    assert batch.logp_sampler is not None
    batch = batch.replace(logp_old=batch.logp_sampler)
    adv = [
      units.token_adv(m.credit((), rollouts, batch), batch) for m in (segments, outcome, known)
    ]
    gain = _gain(game._replace(keys=apart), rollouts, batch)
    return adv, gain, (batch.mask > 0) & (jnp.exp(batch.logp_sampler) < _SURE)

  def measured(state, start, seed):
    adv, gain, unsure = jax.device_get(both(start, seed))
    follow = lambda x: np.nan_to_num(np.corrcoef(x[unsure], gain[unsure])[0, 1])
    return {name: follow(x) for name, x in zip(PROBED["grpo"], adv, strict=True)}

  return measured


def _gain(game, rollouts, batch):
  """f32[R, T]: what a token adds to the value, by 64 continuations of every prefix."""
  rows, t = batch.tokens.shape
  start = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32)[None], (rows, t))
  there = batch.mask > 0
  value, _ = chain.state_values(Chain(1, 64), game, batch.tokens, start, there)
  after = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))
  last = units.is_last(batch)
  return jnp.where(last, rollouts.reward.reshape(-1, 1), after) - value


def statements(d):
  tree = d.stands_for.get(d.main, "tree")  # the oracle stands for both forms
  follow = lambda name: d.final("grpo", f"more:{name}")
  of_main, end = follow("known" if d.stands_for else "chain"), d.final
  tokens = lambda arm: np.asarray(d.final(arm, "sampled")) / np.asarray(d.final("grpo", "sampled"))
  gain = "improvements in accuracy over PPO and GRPO"
  return [
    gates.ideal(d),
    gates.headroom(d),
    gates.learned(d),
    gates.disease(
      "GRPO's advantage says little of a token's own: 1 - correlation with its change of value",
      1 - np.asarray(follow("outcome")),
      ">=",
      0.25,
    ),
    gates.acts("a chain's advantages follow the change of value", of_main, ">=", 0.5),
    gates.budgets(d, "rollouts"),
    claim("accuracy at the end: chain above GRPO", end("chain"), ">", end("grpo"), quote=gain),
    claim("chain above PPO", end("chain"), ">", end("ppo"), quote=gain),
    claim(
      "tree above GRPO",
      end(tree),
      ">",
      end("grpo"),
      quote="SPO-tree [...] achieving 7-11 percentage point improvements over GRPO",
    ),
    claim(
      "correlation with the true change of value: chain's advantages above GRPO's",
      of_main,
      ">",
      follow("outcome"),
      quote="more precise credit assignment than trajectory-level methods",
      margin=0.05,
      why="a correlation has no oracle's scale here",
    ),
    side("over training: chain above GRPO", d.area("chain"), ">", d.area("grpo")),
    side("over training: tree above GRPO", d.area(tree), ">", d.area("grpo")),
    side("sampled tokens over GRPO's: chain above 1", tokens("chain"), ">", 1.0),
    side("sampled tokens over GRPO's: tree below 1", 1.0, ">", tokens("tree")),
    side("at the end: chain above tree", end("chain"), ">", end("tree")),
  ]
