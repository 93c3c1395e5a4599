"""Writes golden/trl.json: values and gradients of TRL's own loss code on one random batch.

Run in an environment that has TRL and torch:  python tests/methods/make_trl_golden.py
The methods of the trainers are called with a stand-in for `self`; the model is a stub that returns
the leaf tensor of log-probabilities.
"""

import json
import pathlib
import types
from collections import defaultdict

import torch
import trl
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import nanstd

N, G, T, BUDGET = 2, 3, 7, 9

CASES = {
  "grpo": {},
  "grpo_wide": {"epsilon_low": 0.1, "epsilon_high": 0.3, "delta": 1.5},
  "grpo_kl": {"beta": 0.04},
  "grpo_kl_corrected": {"beta": 0.04, "use_bias_correction_kl": True},
  "grpo_batch_scale": {"scale_rewards": "batch"},
  "grpo_on_policy": {"on_policy": True},
  "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
  "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
  "dapo_entropy": {"loss_type": "dapo", "epsilon_high": 0.28, "entropy_coef": 0.01},
  "gspo": {"importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.1},
  "cispo": {"loss_type": "cispo", "epsilon_high": 1.3},
  "rloo": {},
}


def make_batch():
  g = torch.Generator().manual_seed(0)
  normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
  rows = N * G
  old = -(normal(rows, T) ** 2) - 0.05
  length = torch.tensor([7, 3, 1, 5, 7, 4])
  return {
    "reward": normal(rows),
    "length": length,
    "logp_old": old,
    "logp": old + 0.3 * normal(rows, T),
    "logp_ref": old + 0.3 * normal(rows, T),
    "entropy": normal(rows, T) ** 2,
  }


def advantages(reward, scale):
  grouped = reward.view(N, G)
  adv = reward - grouped.nanmean(dim=1).repeat_interleave(G)
  if scale == "group":
    return adv / (nanstd(grouped, dim=1).repeat_interleave(G) + 1e-4)
  return adv / (nanstd(reward) + 1e-4) if scale == "batch" else adv


def stand_in(logp, entropy, case):
  same = lambda x, **kwargs: x
  return types.SimpleNamespace(
    _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, entropy, None),
    accelerator=types.SimpleNamespace(
      num_processes=1, gather=same, reduce=same, sync_gradients=True
    ),
    args=types.SimpleNamespace(
      delta=case.get("delta"),
      use_bias_correction_kl=case.get("use_bias_correction_kl", False),
      steps_per_generation=1,
    ),
    model=types.SimpleNamespace(training=True),
    _metrics=defaultdict(lambda: defaultdict(list)),
    aux_loss_enabled=False,
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    importance_sampling_level=case.get("importance_sampling_level", "token"),
    beta=case.get("beta", 0.0),
    loss_type=case.get("loss_type", "grpo"),
    epsilon_low=case.get("epsilon_low", 0.2),
    epsilon_high=case.get("epsilon_high", 0.2),
    use_vllm=False,
    vllm_importance_sampling_correction=False,
    current_gradient_accumulation_steps=1,
    max_completion_length=BUDGET,
    _entropy_bonus_enabled="entropy_coef" in case,
    use_adaptive_entropy=False,
    entropy_coef=case.get("entropy_coef", 0.0),
  )


def run(name, case, batch):
  logp = batch["logp"].clone().requires_grad_(True)
  mask = (torch.arange(T)[None] < batch["length"][:, None]).long()
  me = stand_in(logp, batch["entropy"], case)
  inputs = {
    "prompt_ids": torch.zeros(N * G, 1, dtype=torch.long),
    "prompt_mask": torch.ones(N * G, 1, dtype=torch.long),
    "completion_ids": torch.zeros(N * G, T, dtype=torch.long),
    "completion_mask": mask,
    "num_items_in_batch": mask.sum(),
    "ref_per_token_logps": batch["logp_ref"],
    "advantages": advantages(batch["reward"], case.get("scale_rewards", "group")),
  }
  if not case.get("on_policy"):
    inputs["old_per_token_logps"] = batch["logp_old"]
  if name == "rloo":
    grouped = batch["reward"].view(N, G)
    baseline = (grouped.sum(dim=1, keepdim=True) - grouped) / (G - 1)
    inputs["advantages"] = (grouped - baseline).flatten()
    inputs["old_logps"] = (logp.detach() * mask).sum(1)
  trainer = RLOOTrainer if name == "rloo" else GRPOTrainer
  loss = trainer._compute_loss(me, me.model, inputs)
  loss.backward()
  return {"loss": loss.item(), "grad": logp.grad.tolist()}


def rounded(x):
  if isinstance(x, dict):
    return {k: rounded(v) for k, v in x.items()}
  return [rounded(v) for v in x] if isinstance(x, list) else round(x, 9)


if __name__ == "__main__":
  batch = make_batch()
  out = {
    "trl": trl.__version__,
    "shape": [N, G, T],
    "max_tokens": BUDGET,
    "batch": rounded({k: v.tolist() for k, v in batch.items()}),
    "cases": {name: rounded(run(name, case, batch)) for name, case in CASES.items()},
  }
  target = pathlib.Path(__file__).parent / "golden" / "trl.json"
  target.write_text(json.dumps(out, separators=(",", ":")) + "\n")
