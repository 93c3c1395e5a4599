"""Supervised Pretraining Can Learn In-Context Reinforcement Learning (DPT, the decision-pretrained
transformer).

J. N. Lee et al., 2023, https://arxiv.org/abs/2306.14892.

A context of j transitions D_j of one task, a query state s and an optimal action a* there:

  L = -(1/N) sum_i sum_{j = skip..H} log M(a*_i | s_i, D_ij)

over N sampled tasks, one label for all prefixes of a context (the paper's section 3). Its
minimizer is the posterior P(a* | s, D_j), so to sample from it is posterior sampling (theorem 1).

Column t of a row is one prefix; `Batch.tokens` is the label there and `Batch.mask` says where
there is one. The paper sums j = 0..H. The released code sums j = 1..H, which leaves the prediction
without any data, the first action of an online run, untrained: `skip=1`. The code sums over tasks
too; the mean over tasks differs from it by a factor that only clipping and Adam's eps see. Uniform
predictions of A actions cost (H + 1 - skip) log A.

Continuous actions come through the same door: `Fwd.logp` is then -||tanh(output) - a*||^2, the
log-likelihood of a Gaussian up to scale and constant. Rewards are not read; rows with `alive` False
are left out, and a row that `skip` leaves nothing of counts nowhere.
"""

import jax
import jax.numpy as jnp

from grpo_jax.methods.base import sft
from grpo_jax.names import between
from grpo_jax.types import Method


def make(*, skip: int = 0, aggregate: str = "rollout_sum") -> Method:
  """skip: prefixes left out at the short end. aggregate: core/weights.py; "rollout_mean" divides
  each task's sum by its prefixes, which frees the learning rate from H."""
  base = sft.make(aggregate=aggregate)
  between("skip", skip, 0, what="prefixes left out, 0 in the paper, 1 in the released code")

  def credit(state, rollouts, batch):
    return base.credit(state, rollouts, batch.replace(mask=later(batch, skip)))

  return Method(
    credit=credit,
    loss=base.loss,
    plan=base.plan,
    reduces_to=("sft", {"aggregate": "rollout_sum"}, {}),
  )


def later(batch, skip: int):
  """f32[R, T]: the mask without the first `skip` trained tokens of every unit."""
  if not skip:
    return batch.mask
  own = jax.nn.one_hot(batch.unit, batch.unit_mask.shape[1], dtype=batch.mask.dtype)
  own = own * batch.mask[:, :, None]
  place = jnp.sum(own * jnp.cumsum(own, axis=1), axis=2)  # 1, 2, ... inside a unit; 0 off the mask
  return jnp.where(place > skip, batch.mask, 0)
