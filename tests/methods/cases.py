"""The methods that the shared suite runs over: a new paper adds an entry to CASES."""

import dataclasses

import numpy as np
import problems
from problems import hpt_ratio, sequence_ratio, token_ratio

from grpo_jax import methods


@dataclasses.dataclass(eq=False)  # a key of the suite's caches
class Case:
  name: str
  kwargs: dict = dataclasses.field(default_factory=dict)
  group: int = 4
  ratio: object = None  # stop-gradient factor of the unified estimator; None = 1 (REINFORCE)
  pure: bool = True  # the loss is the policy term alone: no KL, entropy or value term
  layouts: tuple = ("shared", "cut", "packed")
  group_baseline: bool = True  # equal rewards in a group leave nothing to learn
  credit_reduces: int = 1
  units: int = 1  # of a rollout, at most
  given: bool = False  # the last completion of each prompt is a demonstration
  alphabet: int = 50  # different tokens

  def make(self):
    return methods.get(self.name, **self.kwargs)

  def problem(self, seed=0, **kwargs):
    p = problems.ragged(seed, g=self.group, n=16 // self.group, units=self.units, **kwargs)
    p.tokens %= self.alphabet
    p.given[:, -1] = self.given
    return p


def ordered(name, kwargs, units=3, **more):
  """Units in an order, segments, lines or turns: a rollout cannot be cut over two rows."""
  more = {"layouts": ("shared", "packed"), "group_baseline": False} | more
  return Case(name, kwargs, units=units, **more)


TREE = {"form": "tree", "branching": (4,), "beta_kl": 0.0}
CASES = [
  Case("sft", group_baseline=False),
  Case("sft", {"aggregate": "rollout_mean"}, group_baseline=False),
  Case("dpt", group_baseline=False),
  # The first prefix of a unit is that of its row.
  Case("dpt", {"skip": 1}, group_baseline=False, layouts=("shared", "packed")),
  Case("t2mir", group_baseline=False),
  Case("reinforce"),
  Case("reinforce", {"baseline": "none"}, group_baseline=False),
  Case("rloo"),
  Case("rloo", {"beta_kl": 0.1}, pure=False, group_baseline=False),
  Case("grpo", ratio=token_ratio),
  Case("grpo", {"scale": "batch", "ddof": 0, "drop_truncated": True}, ratio=token_ratio),
  Case("grpo", {"aggregate": "token_mean", "dual_clip": 1.5}, ratio=token_ratio),
  Case("grpo", {"aggregate": "constant", "max_tokens": 9}, ratio=token_ratio),
  Case("grpo", {"aggregate": "rollout_sum"}, ratio=token_ratio),
  Case("grpo", {"aggregate": "unit_mean"}, ratio=token_ratio, layouts=("shared", "packed")),
  Case("grpo", {"beta_kl": 0.1, "kl": "rk3", "beta_entropy": 0.01}, pure=False),
  Case("dr_grpo", {"max_tokens": 9}, ratio=token_ratio),
  Case("dapo", {"max_tokens": 6, "overlong_cache": 4}, ratio=token_ratio, group_baseline=False),
  Case("dapo", ratio=token_ratio),
  # The sequence of GSPO is a unit, and the steps of PPO are those of a row.
  Case(
    "gspo", {"eps_low": 0.1, "eps_high": 0.1}, ratio=sequence_ratio, layouts=("shared", "packed")
  ),
  Case("gspo", {"form": "token"}, ratio=sequence_ratio, layouts=("shared", "packed")),
  Case("cispo", {"eps_high": 0.3}, ratio=lambda p: np.minimum(token_ratio(p), 1.3)),
  Case("ppo", pure=False, layouts=("shared", "packed"), group_baseline=False, credit_reduces=6),
  Case(
    "ppo",
    {"whiten": False, "value_coef": 0.0, "lam": 0.9, "gamma": 0.99},
    ratio=token_ratio,
    layouts=("shared", "packed"),
    group_baseline=False,
  ),
  Case(
    "ppo",
    {"beta_kl": 0.1, "beta_entropy": 0.01},
    pure=False,
    layouts=("shared", "packed"),
    group_baseline=False,
    credit_reduces=6,
  ),
  Case("dpo", group=2),
  Case("dpo", {"label_smoothing": 0.1}, group=2),
  Case("dpo", {"kind": "ipo"}, group=2),
  Case("spo_single_stream", ratio=token_ratio, group_baseline=False),
  # A group of one cannot be packed by halves of groups.
  Case(
    "spo_single_stream", group=1, ratio=token_ratio, layouts=("shared", "cut"), group_baseline=False
  ),
  Case(
    "spo_single_stream", {"whiten": False, "rho": 0.875}, ratio=token_ratio, group_baseline=False
  ),
  # Whitening over tokens adds up what PPO's does.
  ordered("spo_segment", {}, pure=False, credit_reduces=7),
  ordered("spo_segment", {"beta_kl": 0.0}, ratio=token_ratio, credit_reduces=7),
  # Truncated completions count 0 here, so rewards that were equal are not.
  Case("spo_segment", TREE, ratio=token_ratio, group_baseline=False, credit_reduces=7),
  Case(
    "spo_segment",
    TREE | {"mode": "grpo", "beta_kl": 0.1},
    pure=False,
    group_baseline=False,
    credit_reduces=7,
  ),
  ordered("rank_grpo", {"ranks": 3}, units=4, pure=False),
  ordered(
    "rank_grpo",
    {"ranks": 3, "reward": "dcg", "shaping": 0.0, "end_token": False, "beta_kl": 0.0},
    ratio=sequence_ratio,
  ),
  ordered(
    "rank_grpo",
    {"ranks": 3, "reward": "decay", "reduction": "token_mean", "drop_truncated": True},
    units=4,
    pure=False,
  ),
  ordered("igpo", {}, pure=False),
  ordered(
    "igpo",
    {"normalize": "separate", "gain": "log", "gamma": 0.9, "beta_kl": 0.0},
    ratio=token_ratio,
  ),
  ordered("igpo", {"gain": "given", "penalty": None, "beta_kl": 0.0}, ratio=token_ratio),
  ordered(
    "igpo",
    {"normalize": "position_mean", "gain": "constant", "beta_kl": 0.0},
    ratio=token_ratio,
    layouts=(),
    credit_reduces=3,
  ),
  Case("hpt_unified", {"max_tokens": 9}, given=True, ratio=hpt_ratio),
  Case(
    "hpt_unified",
    {"max_tokens": 9, "sft_mean": "tokens", "table": ((0.0, 1.0), (0.5, 0.5), (1.0, 0.1))},
    given=True,
    ratio=hpt_ratio,
  ),
  # D3S also adds up counts: once each way it looks for a bound, bit by bit, and once between.
  Case(
    "d3s",
    {"total_steps": 3, "samples": (0.6, 0.9), "tokens": (50.0, 80.0)},
    ratio=token_ratio,
    credit_reduces=4,
  ),
  Case(
    "d3s",
    {"total_steps": 3, "samples": (0.6, 0.9), "scope": "group", "ratio": "sequence"},
    ratio=sequence_ratio,
    layouts=("shared", "packed"),
    credit_reduces=4,
  ),
  Case(
    "d3s",
    {"total_steps": 3, "divide_by": "all", "beta_kl": 0.1, "kl": "k3"},
    pure=False,
    credit_reduces=4,
  ),
  # Places of tokens, as log-probabilities of whole responses, need a rollout in one row. GTPO lays
  # the tokens of a group side by side.
  Case("gtpo", alphabet=2, layouts=("shared", "packed"), group_baseline=False, credit_reduces=2),
  Case(
    "gtpo",
    {"gamma": 0.0, "start_rule": False, "entropy_limit": 1.0, "code_compat": True},
    alphabet=2,
    layouts=("shared", "packed"),
    credit_reduces=3,
  ),
  Case("kimi_k1_5", layouts=("shared", "packed"), group_baseline=False),
  Case(
    "kimi_k1_5",
    {"tau": 0.5, "baseline": "log_z", "length_normalize": True, "negatives": False},
    layouts=("shared", "packed"),
    group_baseline=False,
  ),
]


def label(case):
  return "-".join([case.name, *(f"{k}={v}" for k, v in case.kwargs.items())])
