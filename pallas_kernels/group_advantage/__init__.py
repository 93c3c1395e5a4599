"""Advantages: statistics of a group of rollouts, and returns along the tokens of a row.

An advantage is a constant of the policy gradient: every result here is without gradient. All is
float32. What is not alive, or off the mask, may hold anything (NaN too) and gets exactly 0.

An example in its own right, for who writes a kernel or has a loop of his own: no loop here calls
it. core/groups and core/returns compute the same in plain jnp (a test compares them), which the
compiler can split over devices, where a kernel needs a `shard_map` around it; and the time is not
worth more. On one CPU core 1024 groups of 64 take 0.08 ms here and 0.17 there, GAE over 512 rows of
1024 tokens 3.2 and 7.1 ms, over 256 of 8192 38 and 33 ms; updates of that size take minutes. On an
accelerator core's scan makes one step a token and this one a pass over the row; not timed on one.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.group_advantage import gpu, reference, tpu, xla
from pallas_kernels.group_advantage.reference import KINDS, SCALES

__all__ = ["KINDS", "RAGGED", "SCALES", "SCANS", "TABLE", "discounted", "egae", "gae",
           "group_advantage", "ragged_advantage"]  # fmt: skip


def _table(name: str):
  kernels = {"tpu": getattr(tpu, name), "gpu": getattr(gpu, name)}
  forced = {f"{k}_interpret": functools.partial(f, interpret=True) for k, f in kernels.items()}
  return {"reference": getattr(reference, name), "xla": getattr(xla, name), **kernels, **forced}


TABLE = _table("group_advantage")
RAGGED = _table("ragged_advantage")
SCANS = _table("backward_scan")


def _options(kind: str, scale: str, ddof: int, eps: float | None) -> dict:
  if kind not in KINDS:
    raise ValueError(f"kind={kind!r} is unknown: use one of {', '.join(KINDS)}")
  if scale not in SCALES:
    raise ValueError(f"scale={scale!r} is unknown: use one of {', '.join(SCALES)}")
  if eps is None:
    eps = {"standardize": 1e-4, "whiten": 1e-8}.get(kind, 0.0)
  return {"kind": kind, "scale": scale, "ddof": ddof, "eps": eps}


def group_advantage(
  reward: Float[Array, "N G"],
  alive: Bool[Array, "N G"],
  *,
  kind: str = "standardize",
  scale: str = "group",
  ddof: int = 1,
  eps: float | None = None,
  implementation: str | None = None,
) -> Float[Array, "N G"]:
  """Advantages of the rollouts of each prompt, over what is alive in its group of k.

  kind:  "standardize"    (r - mean) / (s + eps), eps 1e-4   (GRPO, 2402.03300, section 4.1.2)
                          scale: s is the deviation of the "group", of the whole "batch", or "none"
                          (no division: Dr.GRPO, 2503.20783); ddof 1 or 0
         "leave_one_out"  r - mean of the others = k / (k - 1) (r - mean)   (RLOO, 2402.14740)
         "ranks"          (number below - number above) / (k - 1), in [-1, 1], equal ones alike
         "minmax"         (r - mean) / (max - min + eps), eps 0
         "whiten"         (r - mean) / (s + eps) over the whole batch, eps 1e-8
  A group whose alive rewards are all equal, so also one with fewer than two, gets exactly 0; for
  "whiten" the group is the batch. Kernels leave "whiten" to XLA; the deviation of scale="batch" is
  computed by XLA too. Raises ValueError for an unknown kind or scale.
  """
  options = _options(kind, scale, ddof, eps)
  return dispatch.run(TABLE, implementation, jax.lax.stop_gradient(reward), alive, **options)


def ragged_advantage(
  reward: Float[Array, " R"],
  group: Int[Array, " R"],
  *,
  num_groups: int,
  kind: str = "standardize",
  scale: str = "group",
  ddof: int = 1,
  eps: float | None = None,
  implementation: str | None = None,
) -> Float[Array, " R"]:
  """`group_advantage` for groups of any sizes in any order, told apart by ids below `num_groups`.

  A rollout with another id, such as -1, is not alive. Kernels compare all pairs of rollouts, a
  block at a time; "xla" sums by id, but for "ranks", where it forms [num_groups, R, R] pairs.
  """
  options = _options(kind, scale, ddof, eps)
  args = jax.lax.stop_gradient(reward), group
  return dispatch.run(RAGGED, implementation, *args, num_groups=num_groups, **options)


def _by_row(x, rows: int) -> Array:
  """A number, or one a row, as float32 [R, 1]; one a token as it is."""
  x = jnp.asarray(x, jnp.float32)
  return x if x.ndim == 2 else jnp.broadcast_to(x.reshape(-1, 1), (rows, 1))


def _scan(implementation, reward, mask, decay, value=None, last=None, gamma=None, segment=None):
  # Constants from here on: a kernel cannot be differentiated.
  fixed = lambda x: None if x is None else jax.lax.stop_gradient(jnp.asarray(x, jnp.float32))
  return dispatch.run(
    SCANS, implementation, fixed(reward), fixed(mask), fixed(decay),
    value=fixed(value), last=fixed(last), gamma=fixed(gamma), segment=segment,
  )  # fmt: skip


def discounted(
  reward: Float[Array, "R T"],
  mask: Float[Array, "R T"],
  gamma: float | Float[Array, "*R_T"],
  segment: Int[Array, "R T"] | None = None,
  *,
  implementation: str | None = None,
) -> Float[Array, "R T"]:
  """G_t = reward_t + gamma_t G_next, 0 off the mask and after the last token of a `segment`.

  Next is the next token on the mask with the same segment id (default: the whole row). `gamma`: a
  number, an [R] array or one of a number a token.
  """
  gamma = _by_row(gamma, reward.shape[0])
  return _scan(implementation, reward, mask, gamma, segment=segment)


def gae(
  reward: Float[Array, "R T"],
  value: Float[Array, "R T"],
  mask: Float[Array, "R T"],
  *,
  gamma: float | Float[Array, " R"],
  lam: float | Float[Array, " R"],
  segment: Int[Array, "R T"] | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, "R T"], Float[Array, "R T"]]:
  """(A, A + value): A_t = delta_t + gamma lam A_next, delta_t = reward_t + gamma V_next - V_t.

  Generalized advantage estimation, https://arxiv.org/abs/1506.02438, equation 16. Both are 0 off
  the mask. The value after the last token is 0: a rollout ends there, also a truncated one (for
  those see `egae`).
  gamma, lam: numbers, or one a row, as in the length-adaptive 1 - 1 / (0.05 length).
  """
  return egae(
    reward, value, mask, None, gamma=gamma, lam=lam, segment=segment, implementation=implementation
  )


def egae(
  reward: Float[Array, "R T"],
  value: Float[Array, "R T"],
  mask: Float[Array, "R T"],
  truncated: Bool[Array, " R"] | Bool[Array, "R T"] | None,
  *,
  gamma: float | Float[Array, " R"],
  lam: float | Float[Array, " R"],
  bootstrap: Float[Array, " R"] | Float[Array, "R T"] | None = None,
  segment: Int[Array, "R T"] | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, "R T"], Float[Array, "R T"]]:
  """`gae` whose value after the last token of a truncated rollout is not 0 (EGAE of T-PPO).

  It is taken to be that of the last state, V(s_l) := V(s_(l-1)), so that with gamma = 1 and without
  reward the last token gets exactly 0; or `bootstrap`, the value of the state after the last token.
  truncated, bootstrap: of a row, or, where several rollouts share one, read at their last token.
  """
  shape = reward.shape
  value, last = jnp.asarray(value, jnp.float32), None
  if truncated is not None:
    fill = lambda x: jnp.broadcast_to(x if jnp.ndim(x) == 2 else x[:, None], shape)
    beyond = value if bootstrap is None else fill(bootstrap)
    last = jnp.where(fill(truncated), beyond, jnp.zeros((), beyond.dtype))
  gamma, lam = _by_row(gamma, shape[0]), _by_row(lam, shape[0])
  adv = _scan(implementation, reward, mask, gamma * lam, value, last, gamma, segment)
  returns = jnp.where(mask > 0, adv + value, 0)
  return adv, jax.lax.stop_gradient(returns)
