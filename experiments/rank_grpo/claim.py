"""Rank-GRPO (paper 58) against GRPO and GSPO on ranked lists, several updates a batch.

The dial is how many ranks a list has: with one, the list's reward is the rank's own; with six, a
line is paid for what stands above it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import gates, study
from experiments.common.statements import claim, side
from grpo_jax import envs, methods
from grpo_jax.core import grids, groups, objectives
from grpo_jax.rollout import play
from grpo_jax.train.programs import fused

CLAIM = (
  "Crediting each rank of a list with what it causes itself, with one importance ratio a rank, "
  "converges faster and ends at higher Recall and NDCG than GRPO and GSPO with NDCG as reward."
)
NOTES = (
  "Relevances are 0, 1/2 and 1 and shown by the prompt, not learnt from users; two thirds of the "
  "items have some. Lists have their length by the world: no length shaping, no stop token. Two "
  "passes over a batch, so that ratios are not 1; GSPO clips its ratio of a list where Rank-GRPO "
  "clips that of a line, GRPO a token's at 0.2. A rank's reward is its own relevance "
  "(exp-infinity); that of the ranks from it on is an ablation. 'Recall' is the relevance in the "
  "list, whatever its order. The oracle is Rank-GRPO from a start that has imitated best lists for "
  "longer; the placebo is told the relevance of the line half a list further. No KL. 'astray' is "
  "the share of the start's lines whose advantages by list and by rank have opposite signs."
)
UNTESTED = (
  "conversations, a catalog and its titles, the supervised first stage (Remap-Reflect-Adjust), "
  "real users' relevance, lines of several words, models above 0.1M parameters"
)
CHANGES = ("reward", "advantage", "loss")
HISTORY = ()
CURVES = ("reward", "turn:0", "part:lines", "train:clip_high", "train:entropy")
PROBED = {"grpo": ("astray",)}


def get_config(variant: str = ""):
  own = {"shaping": 0.0, "end_token": False, "beta_kl": 0.0}
  rank = lambda role, **args: study.arm(role, "rank_grpo", own | args)
  longer = {"warm_steps": 1000, "warm_until": 0.5}
  return study.config(
    "rank_grpo",
    variant,
    world="ranked_list",
    params={"items": 6, "letters": 3},
    plan={
      "updates": 80,
      "eval_every": 10,
      "prompts": 16,
      "group": 8,
      "epochs": 2,
      "heldout": 256,
      "eval_temperature": 1.0,
      "warm_steps": 600,
      "warm_until": 0.1,
    },
    dial=(
      "ranks",
      {
        "one": {"params": {"ranks": 1}, "plan": {"warm_until": 0.4}},
        "six": {"params": {"ranks": 6}},
      },
    ),
    arms={
      "grpo": study.arm("baseline", "grpo"),
      "gspo": study.arm("baseline", "gspo", {"eps_low": 0.06, "eps_high": 0.08}),
      "rank": rank("main"),
      "taught": study.arm("oracle", "rank_grpo", own, plan=longer, fixed="imitation taught it"),
      "elsewhere": rank("placebo"),
      "dcg": rank("ablation", reward="dcg"),
      "token_mean": rank("ablation", reduction="token_mean"),
      "token_ratio": rank("ablation"),
    },
    score="reward",
    lrs=(1e-4, 3e-4, 1e-3),
  )


def alter(cell, method):
  """Lists are as long as the world's; the placebo's relevances; the ratio of a token."""
  ranks = cell.spec["params"]["ranks"]
  if cell.spec["method"] != "rank_grpo":
    return method
  method = methods.get("rank_grpo", **cell.spec["args"], ranks=ranks)
  if cell.arm == "token_ratio":
    return dataclasses.replace(method, loss=objectives.clipped(eps_low=0.06, eps_high=0.08).loss)
  if cell.arm != "elsewhere":
    return method

  def credit(state, rollouts, batch):
    other = jnp.roll(batch.unit_reward, -(ranks // 2), axis=1)
    return method.credit(state, rollouts, batch.replace(unit_reward=other))

  return dataclasses.replace(method, credit=credit)


def probe(cell):
  """Of the arm "grpo": the share of the start's lines that the list's advantage sends astray."""
  if cell.arm != "grpo":
    return None
  world = envs.get(cell.spec["world"], **cell.spec["params"])
  config = fused.tiny_config(world.vocab)

  @jax.jit
  def astray(params, seed):
    ids = jnp.arange(64)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(7), seed), 64)
    rollouts, batch = play.play(world, config, params, world.problems(1, ids), ids, keys, group=8)
    rel = grids.to_grid(batch.unit_reward, batch, rollouts, world.turns)
    alive = jnp.broadcast_to(rollouts.alive[:, :, None], rel.shape)
    own = groups.standardize(rel, alive)
    product = own * groups.standardize(rollouts.reward, rollouts.alive)[:, :, None]
    return jnp.sum(product < 0) / jnp.maximum(jnp.sum(own != 0), 1)

  return lambda state, start, seed: {"astray": astray(start, seed)}


def statements(d):
  ranks = [k for k in range(6) if d.has("grpo", f"turn:{k}")]
  recall = lambda arm: np.mean([d.final(arm, f"turn:{k}") for k in ranks], axis=0)
  lower = lambda arm: np.mean([d.final(arm, f"turn:{k}") for k in ranks[len(ranks) // 2 :]], axis=0)
  higher = "achieves higher Recall and NDCG than GRPO-style baselines"
  return [
    gates.ideal(d),
    gates.headroom(d),
    gates.learned(d),
    gates.disease(
      "lines that the list's advantage sends astray", d.final("grpo", "more:astray"), ">=", 0.1
    ),
    gates.acts("Rank-GRPO's ratio is clipped", d.area("rank", "train:clip_high"), ">=", 0.001),
    gates.budgets(d, "rollouts"),
    claim("NDCG at the end: Rank-GRPO above GRPO", d.final("rank"), ">", d.final("grpo"), higher),
    claim("NDCG at the end: Rank-GRPO above GSPO", d.final("rank"), ">", d.final("gspo"), higher),
    claim(
      "Recall at the end: Rank-GRPO above GRPO",
      recall("rank"),
      ">",
      recall("grpo"),
      quote=higher,
      margin=0.01,
      why="0.01 of the range of a line's relevance",
    ),
    claim(
      "NDCG in the first half: Rank-GRPO above GRPO",
      d.early("rank"),
      ">",
      d.early("grpo"),
      quote="converges faster",
    ),
    side("NDCG in the first half: Rank-GRPO above GSPO", d.early("rank"), ">", d.early("gspo")),
    side("relevance at the lower half of the ranks", lower("rank"), ">", lower("grpo")),
    side("Rank-GRPO above its placebo", d.area("rank"), ">", d.area("elsewhere")),
    side("a rank's own relevance above that from it on", d.area("rank"), ">", d.area("dcg")),
    side("the mean over ranks above that over tokens", d.area("rank"), ">", d.area("token_mean")),
    side("a ratio a rank above one a token", d.area("rank"), ">", d.area("token_ratio")),
  ]
