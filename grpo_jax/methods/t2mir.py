"""Mixture-of-Experts Meets In-Context Reinforcement Learning (T2MIR).

W. Wu et al., 2025, https://arxiv.org/abs/2506.05426.

  L = L_imitation + balance * L_bal + contrast * L_con

L_imitation is DPT's sum over predicted tokens, or the mean over them (`aggregate`; the released
code takes the mean, our reading). L_bal, the sum over MoE layers of CV^2(importance) + CV^2(load)
of the token gate, and L_con, the InfoNCE loss of core/contrastive.py, come from the
model as `Fwd.aux["balance"]` and `Fwd.aux["contrast"]`; a model without experts gives neither.
They are statistics of a whole batch, so unlike the imitation loss they do depend on a cut into
micro-batches: use one.

The pairs of a batch: rows i and i + B/2 hold two independent contexts of one task. The key gate
is an exponential average of the task gate, k <- gate_rate g + (1 - gate_rate) k after every
optimizer step, with the gate after it and the average before it (weight decay would else pull it
to 0); it gets no gradient. It stands in params["key_gate"], by layer.
"""

import jax

from grpo_jax.methods.base import sft
from grpo_jax.names import between
from grpo_jax.types import Method


def make(
  *,
  balance: float = 0.01,
  contrast: float = 0.001,
  aggregate: str = "token_mean",
  gate_rate: float = 0.005,  # tau
) -> Method:
  """Defaults of T2MIR-DPT on Darkroom; T2MIR-AD has balance=0.1, contrast=0.01."""
  base = sft.make(aggregate=aggregate)
  for name, value in (("balance", balance), ("contrast", contrast)):
    between(name, value, 0)
  between("gate_rate", gate_rate, 0, 1)

  def loss(fwd, batch, credit):
    total, metrics = base.loss(fwd, batch, credit)
    for name, coefficient in (("balance", balance), ("contrast", contrast)):
      if name in fwd.aux:
        total = total + coefficient * fwd.aux[name]
        metrics[name] = fwd.aux[name]
    return total, metrics

  def settle(params, before):
    if "key_gate" not in params:
      return params
    gates = {name: params["layers"][name]["moe"]["task"]["gate"] for name in params["key_gate"]}
    mix = lambda slow, fast: slow + gate_rate * (fast - slow)
    return params | {"key_gate": jax.tree.map(mix, before["key_gate"], gates)}

  return Method(
    credit=base.credit,
    loss=loss,
    settle=settle,
    plan=base.plan,
    reduces_to=("sft", {"aggregate": "token_mean"}, {}),
  )
