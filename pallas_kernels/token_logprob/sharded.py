"""A vocabulary split over devices: each part has its own distribution, a collective joins them."""

import jax
import jax.numpy as jnp

from pallas_kernels.token_logprob.pieces import TokenLogprob


def _varies(x, axis_name: str) -> bool:
  """Whether shard_map keeps track of what varies over the axis (check_vma), and x does."""
  kind = getattr(jax.typeof(x), "manual_axis_type", None)
  return axis_name in getattr(kind, "varying", ())


def join(local, hidden, head, target, axis_name: str) -> TokenLogprob:
  """Parts l with their own log p_l, H_l, Z_l: w_l = Z_l / Z is the weight of part l, and
  log p = log p_l + log w_l for the part that has the target, H = sum_l w_l (H_l - log w_l)."""
  size = head.shape[0]
  owner = target // size
  here = jax.lax.axis_index(axis_name)
  # The others pick any token of theirs; what they find there is put to 0, and so is its gradient.
  parts = jnp.stack(local(hidden, head, jnp.where(owner == here, target - here * size, 0)))
  to = "invarying" if _varies(head, axis_name) else "varying"
  logp, entropy, lse = jax.lax.all_gather(parts, axis_name, to=to).swapaxes(0, 1)  # each [n, X]
  total = jax.nn.logsumexp(lse, axis=0)
  log_weight = lse - total[None]
  mine = owner[None] == jnp.arange(lse.shape[0], dtype=owner.dtype)[:, None]
  return TokenLogprob(
    jnp.sum(jnp.where(mine, logp + log_weight, 0), axis=0),
    jnp.sum(jnp.exp(log_weight) * (entropy - log_weight), axis=0),
    total,
  )
