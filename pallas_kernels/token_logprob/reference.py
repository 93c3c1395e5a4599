"""The specification: the whole [X, V] table of logits is formed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_logprob(
  hidden: Float[Array, "X D"],
  head: Float[Array, "V D"],
  target: Int[Array, " X"],
  temperature: float | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, " X"], Float[Array, " X"], Float[Array, " X"]]:
  """log_softmax(hidden head^T / temperature)[target], the distribution's entropy, log Z."""
  logits = jnp.einsum("xd,vd->xv", hidden, head, preferred_element_type=jnp.float32) / temperature
  logp = jax.nn.log_softmax(logits, axis=-1)
  entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
  picked = jnp.take_along_axis(logp, target[:, None], axis=-1)[:, 0]
  return picked, entropy, jax.nn.logsumexp(logits, axis=-1)
