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
CURVES = ("accuracy", "part:path", "train:zero_variance", "train:sampled", "more:follow")
_FOLLOW = ("follow", "outcome")
PROBED = {"chain": _FOLLOW, "known": _FOLLOW}
_SURE = 0.9


def get_config(variant: str = ""):
  spo = lambda role, knob, **args: study.arm(
    role, "spo_segment", {"beta_kl": 0.0} | args, knob=knob
  )
  hops = lambda n: {"params": {"hops": n}}
  return study.config(
    "spo_segment",
    variant,
    world="hops",
    params={"keys": 6},
    plan={
      "updates": 120,
      "eval_every": 20,
      "prompts": 8,
      "group": 8,
      "mini": 2,
      "heldout": 512,
      "eval_temperature": 1.0,
      "warm_steps": 600,
      "warm_until": 0.3,
    },
    dial=("hops", {"two": hops(2), "four": hops(4)}),
    arms={
      "grpo": study.arm("baseline", "grpo"),
      "chain": spo("main", ("interval", (1, 2)), samples=4),
      "tree": spo(
        "baseline", ("mode", ("rloo", "grpo")), form="tree", branching=(2, 2, 2), segment_tokens=2
      ),
      "ppo": study.arm("baseline", "ppo", knob=("lam", (0.95, 1.0))),
      "known": study.arm("oracle", "grpo"),
    },
    lrs=(1e-4, 3e-4, 1e-3),
  )


def alter(cell, method):
  """The oracle is told which hop was the first wrong one."""
  if cell.arm != "known":
    return method
  params = cell.spec["params"]

  def credit(state, rollouts, batch):
    right = _right(batch, rollouts, params["keys"], params["hops"])
    on = jnp.cumprod(jnp.pad(right, ((0, 0), (1, 0)), constant_values=1)[:, :-1], axis=1)
    rate = jnp.sum(on * right, axis=0) / jnp.maximum(jnp.sum(on, axis=0), 1)
    adv = units.masked(_in_place(on * (right - rate[None]), batch.tokens.shape[1]), batch)
    weight = weights.token_mean(batch, rollouts)
    return Credit(adv=units.pool_mean(adv, batch), adv_token=adv, weight=weight)

  return dataclasses.replace(method, credit=credit)


def _right(batch, rollouts, keys: int, hops: int):
  """f32[R, hops + 1]: 1 where a hop follows the link of the one before; last: if all is right."""
  small, start = 2 + keys, 2 * keys + 1
  prompt = jnp.repeat(batch.prompt_tokens, rollouts.reward.shape[1], axis=0)
  pairs = prompt[:, : 2 * keys].reshape(-1, keys, 2)
  written = batch.tokens[:, 1 : 2 * hops : 2] - small
  before = jnp.concatenate([prompt[:, start : start + 1] - small, written[:, :-1]], axis=1)
  link = (pairs[:, None, :, 0] - 2 == before[:, :, None]) & (
    pairs[:, None, :, 1] - small == written[:, :, None]
  )
  right = jnp.concatenate([jnp.any(link, axis=2), rollouts.correct.reshape(-1, 1)], axis=1)
  return right.astype(jnp.float32)


def _in_place(x, size: int):
  """f32[R, T] of one number a hop, at its second token, and of the last at the token after."""
  hops = x.shape[1] - 1
  out = jnp.zeros((x.shape[0], size), jnp.float32)
  return out.at[:, 1 : 2 * hops : 2].set(x[:, :-1]).at[:, 2 * hops].set(x[:, -1])


def probe(cell):
  """How advantages follow the change of value, at the start: the arm's, and GRPO's on the same."""
  if cell.arm not in PROBED:
    return None
  world = envs.get(cell.spec["world"], **cell.spec["params"])
  method = alter(cell, methods.get(cell.spec["method"], **cell.spec["args"]))
  config = fused.tiny_config(world.vocab)
  ids = jnp.arange(16)
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))

  @jax.jit
  def both(params, seed):
    key = jax.random.fold_in(jax.random.key(13), seed)
    own, apart = fold(key, ids), fold(jax.random.fold_in(key, 1 << 20), ids)
    problems = world.problems(1, ids)
    game = plans.Game(world, config, params, problems, ids, own, 8, ids.size)
    rollouts, batch, *_ = plans.of(method.plan).play(method.plan, game)
    batch = batch.replace(logp_old=batch.logp_sampler)
    token = lambda c: units.token_adv(c, batch)
    adv = token(method.credit((), rollouts, batch)), token(outcome.credit((), rollouts, batch))
    gain = _gain(game._replace(keys=apart), rollouts, batch)
    return *adv, gain, (batch.mask > 0) & (jnp.exp(batch.logp_old) < _SURE)

  outcome = methods.get("grpo")

  def measured(state, start, seed):
    *adv, gain, unsure = (np.asarray(x) for x in both(start, seed))
    follow = lambda x: np.corrcoef(x[unsure], gain[unsure])[0, 1]
    return {name: np.nan_to_num(follow(x)) for name, x in zip(_FOLLOW, adv, strict=True)}

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
  end, follow = d.final, lambda arm, name: d.final(arm, f"more:{name}")
  tokens = lambda arm: np.asarray(d.final(arm, "sampled")) / np.asarray(d.final("grpo", "sampled"))
  gain = "improvements in accuracy over PPO and GRPO"
  return [
    gates.ideal(d),
    gates.headroom(d),
    gates.learned(d),
    gates.disease(
      "GRPO's advantage says little of a token's own: 1 - correlation with its change of value",
      1 - np.asarray(follow("chain", "outcome")),
      ">=",
      0.25,
    ),
    gates.acts(
      "a chain's advantages follow the change of value", follow("chain", "follow"), ">=", 0.5
    ),
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
      follow("chain", "follow"),
      ">",
      follow("chain", "outcome"),
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
