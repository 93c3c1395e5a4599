"""How evenly a router uses its experts: importance, load and the losses that even them out. N
tokens, E experts, k of them chosen for a token.

`gates` are the weights of the mixture, [N, E]: positive for the k chosen experts, 0 elsewhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cv_squared(x: Float[Array, " E"]) -> Float[Array, ""]:
  """CV^2(x) = var(x, ddof=1) / (mean(x)^2 + 1e-10), 0 if E = 1.

  0 where all are equal, E where one expert has everything.
  """
  if x.shape[0] == 1:
    return jnp.zeros((), x.dtype)
  return jnp.var(x, ddof=1) / (jnp.mean(x) ** 2 + 1e-10)


def importance(gates: Float[Array, "N E"]) -> Float[Array, " E"]:
  """importance_j = sum_n gates_nj."""
  return jnp.sum(gates, axis=0)


def count_load(gates: Float[Array, "N E"]) -> Float[Array, " E"]:
  """How many tokens each expert was chosen for; no gradient."""
  return jnp.sum((gates > 0).astype(gates.dtype), axis=0)


def noisy_load(
  clean: Float[Array, "N E"], noisy: Float[Array, "N E"], sigma: Float[Array, "N E"], k: int
) -> Float[Array, " E"]:
  """load_j = sum_n Phi((clean_nj - threshold_nj) / sigma_nj): the smooth load of Shazeer et al.
  (2017, appendix A; recalled, not read).

  A term is the probability that j is among the k largest if only its own noise is drawn again,
  noisy = clean + sigma * noise: the threshold is the k-th largest of the other noisy logits, which
  is the (k + 1)-th of all where j is among the k largest and the k-th elsewhere. Gradients flow
  through everything. Needs k < E. The authors of T2MIR compare the threshold with the noise alone
  to see whether j is among the largest; that is not this definition.
  """
  values, _ = jax.lax.top_k(noisy, k + 1)
  low, high = values[:, k:], values[:, k - 1 : k]
  margin = (clean - jnp.where(noisy > low, low, high)) / sigma
  return jnp.sum(jax.scipy.special.ndtr(margin), axis=0)


def balance_loss(importance: Float[Array, " E"], load: Float[Array, " E"]) -> Float[Array, ""]:
  """CV^2(importance) + CV^2(load), before its weight (paper 04: w_bal)."""
  return cv_squared(importance) + cv_squared(load)
