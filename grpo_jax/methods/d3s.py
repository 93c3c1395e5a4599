"""Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy
Optimization (D3S).

C. Wang et al., 2025, https://arxiv.org/abs/2509.22115 (ICLR 2026).

Groups and advantages are GRPO's, over all M = B G rollouts, and are never normalised again. Then

  S = argmax_{|S| = N} Var(A_S)                      rollouts, over the whole batch (ddof 0)
  T = the ceil(K/100 sum_{i in S} n_i) tokens of S of the largest |A_i| H_it
  L = -1/|T| sum_{it in T} min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i) + beta_kl KL_it
  N = round((1 - p) N_init + p N_final) in [2, M],  K likewise,  p = step / total_steps

A, H (entropy in nats of the policy that sampled) and the masks are stop-gradient. Equal A at the
border of S, as binary rewards give: by index (core/selection.py); tokens of equal score: the first
ones. All A = 0: the loss is exactly 0. Rollouts that are dead or empty are not in M.

No released code was found: this is a reconstruction from the abstract and third-party notes. Our
reading: the aggregation 1/|T|, the moment of H. Assumed: the quotas, shares of M (samples) and per
cent (tokens), begin and end of the schedule. 1/|T| raises the effective learning rate against GRPO;
divide_by="all" keeps the denominator of all M rollouts.

scope="group" is the paper's intra-group variant: the same with each group's own G and N/B.
ratio="sequence": on GSPO, its token form (an unselected token has no gradient); set its eps then.
pick="random": the control, equal numbers of random rollouts and tokens. step is `rollouts.step`.
"""

import jax
import jax.numpy as jnp

from grpo_jax.core import groups, objectives, selection, units
from grpo_jax.errors import UserError
from grpo_jax.names import between, one_of
from grpo_jax.types import Credit, Method

RATIO = {"token": "token", "sequence": "unit_token"}  # of D3S on GRPO, on GSPO
_CHOICES = {
  "scope": ("batch", "group"),
  "ratio": tuple(RATIO),
  "pick": ("variance", "random"),
  "divide_by": ("kept", "all"),
}


def make(
  *,
  total_steps: int,
  samples: tuple[float, float] = (0.25, 0.75),
  tokens: tuple[float, float] = (10.0, 30.0),
  scope: str = "batch",
  ratio: str = "token",
  pick: str = "variance",
  divide_by: str = "kept",
  eps_low: float = 0.2,
  eps_high: float = 0.2,
  beta_kl: float = 0.0,
  kl: str = "k3+",
  ddof: int = 0,
  eps_std: float = 1e-6,
) -> Method:
  _check(total_steps, samples, tokens, scope=scope, ratio=ratio, pick=pick, divide_by=divide_by)
  by_entropy = pick == "variance" and min(tokens) < 100

  def credit(state, rollouts, batch):
    if (step := rollouts.step) is None:
      raise UserError("d3s: rollouts.step is None; give the updates made so far, which p counts")
    progress = jnp.minimum(step / total_steps, 1)
    share, percent = (first + progress * (last - first) for first, last in (samples, tokens))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step))

    adv = groups.standardize(rollouts.reward, rollouts.alive, ddof=ddof, eps=eps_std)
    unit_adv = units.of_owner(adv, batch)
    length = units.token_count(batch, rollouts)
    present = rollouts.alive & (length > 0)
    best, of_rollout, of_token = selection.largest_variance, adv, jnp.ones_like(batch.mask)
    if pick == "random":
      best, of_rollout = selection.top, jax.random.uniform(keys[0], adv.shape)
      of_token = jax.random.uniform(keys[1], batch.mask.shape)
    elif by_entropy:
      entropy = units.masked(batch.entropy_old, batch)
      of_token = jnp.abs(units.spread(unit_adv, batch)) * entropy

    chosen = selection.of_rollouts(best, of_rollout, present, share, in_groups=scope == "group")
    inside = units.spread(units.of_owner(chosen.astype(length.dtype), batch), batch) > 0
    size = selection.ceil_share(percent / 100, jnp.sum(jnp.where(chosen, length, 0)))
    kept = selection.top(of_token, inside, size)
    every = jnp.sum(jnp.where(present, length, 0))
    number = every if divide_by == "all" else size.astype(length.dtype)
    return Credit(adv=unit_adv, weight=jnp.where(kept, 1 / jnp.maximum(number, 1), 0))

  objective = objectives.clipped(
    eps_low=eps_low, eps_high=eps_high, ratio=RATIO[ratio], beta_kl=beta_kl, kl=kl
  )

  def loss(fwd, batch, credit):
    total, metrics = objective.loss(fwd, batch, credit)
    trained = jnp.sum(credit.weight > 0, dtype=credit.weight.dtype)
    return total, metrics | {"trained_tokens": trained}

  everything = {"samples": (1.0, 1.0), "tokens": (100.0, 100.0), "total_steps": 1}
  return Method(
    credit=credit,
    loss=loss,
    needs=("entropy_old",) * by_entropy + objective.needs,
    reduces_to=("grpo", {"aggregate": "token_mean", "ddof": 0, "eps_std": 1e-6}, everything),
  )


def _check(total_steps, samples, tokens, **choices) -> None:
  for name, value in choices.items():
    one_of(name, value, _CHOICES[name])
  between("total_steps", total_steps, 1, what="the length of the schedule")
  between("samples", samples, high=1, above=0, what="shares of the batch")
  between("tokens", tokens, high=100, above=0, what="per cent of the chosen tokens")
