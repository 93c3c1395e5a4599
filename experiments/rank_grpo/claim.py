"""Rank-GRPO (paper 58) against GRPO on lists of 8 out of 16 items, one update a batch."""

from experiments.common import first_protocol as study
from experiments.common.first_protocol import more

CLAIM = (
  "Credit by rank, with the relevance of the own rank only (exp-infinity) and every rank weighing "
  "the same, ranks better than GRPO with NDCG as reward, and mostly at the lower ranks."
)
NOTES = (
  "Relevances are 0, 1/2 and 1 and shown by the prompt, not learnt from users. Lists have their "
  "length by the world: no length shaping, no stop token. With one update a batch the ratio is 1, "
  "so GSPO's gradient is GRPO's and has no arm, and 'token' is the token-level policy gradient "
  "with advantages by rank. No KL. The variance of the gradient was not measured."
)
RANKS = 8
CURVES = (
  ("rank", "reward"),
  *(("rank", f"turn:{k}") for k in (0, 3, 7)),
  ("rank", "part:lines"),
  ("rank", "train:idle"),
)


def get_config(variant: str = ""):
  own = {"ranks": RANKS, "shaping": 0.0, "end_token": False, "beta_kl": 0.0}
  arms: dict = {"grpo": {"method": "grpo"}}
  for reward in ("hit", "dcg"):
    for name, reduction in (("rank", "rank_mean"), ("token", "token_mean")):
      args = own | {"reward": reward, "reduction": reduction}
      arms[f"{reward}_{name}"] = {"method": "rank_grpo", "args": args}
  return study.config(
    "rank_grpo",
    variant,
    plan={
      "updates": 160,
      "eval_every": 20,
      "prompts": 16,
      "group": 8,
      "heldout": 256,
      "eval_temperature": 1.0,
      "warm_steps": 150,
    },
    worlds={"rank": {"world": "ranked_list", "params": {"items": 16, "ranks": RANKS}}},
    arms=arms,
    lr=5e-4,
  )


def statements(d):
  rank = lambda arm, k: d.final("rank", arm, f"turn:{k}")
  gain = lambda k: rank("hit_rank", k) - rank("grpo", k)
  mean = lambda ranks: sum(gain(k) for k in ranks) / len(ranks)
  return [
    more(
      "NDCG@8 of Rank-GRPO (hit, rank mean) above GRPO's",
      d.final("rank", "hit_rank", "reward"),
      d.final("rank", "grpo", "reward"),
      margin=0.005,
    ),
    more(
      "its gain in relevance at ranks 5 to 8 above that at ranks 1 and 2",
      mean(range(4, 8)),
      mean(range(2)),
    ),
  ]
