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
is an exponential average of the task gate, updated after every optimizer step
(models/moe/layer.py: update_key_gate); it gets no gradient.
"""

from grpo_jax.methods.base import sft
from grpo_jax.names import between
from grpo_jax.types import Method


def make(
  *, balance: float = 0.01, contrast: float = 0.001, aggregate: str = "token_mean"
) -> Method:
  """Defaults of T2MIR-DPT on Darkroom; T2MIR-AD has balance=0.1, contrast=0.01."""
  base = sft.make(aggregate=aggregate)
  for name, value in (("balance", balance), ("contrast", contrast)):
    between(name, value, 0)

  def loss(fwd, batch, credit):
    total, metrics = base.loss(fwd, batch, credit)
    for name, coefficient in (("balance", balance), ("contrast", contrast)):
      if name in fwd.aux:
        total = total + coefficient * fwd.aux[name]
        metrics[name] = fwd.aux[name]
    return total, metrics

  return Method(
    credit=base.credit,
    loss=loss,
    plan=base.plan,
    reduces_to=("sft", {"aggregate": "token_mean"}, {}),
  )
