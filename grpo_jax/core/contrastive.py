"""InfoNCE between two prompts of one task (paper 04, T2MIR): the loss that shapes its task router.

Rows i and i + B/2 of a batch belong to the same task, all others to other tasks. Of one row, q is
the router's representation and k the one of the router's slow copy, the key gate. The formulas are
those of the authors' code; the paper's equation numbers were not read.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def info_nce(
  q: Float[Array, "B E"], k: Float[Array, "B E"], w: Float[Array, "E E"]
) -> Float[Array, ""]:
  """L_con = CE(Q_1 W K_2^T) / 2 + CE(Q_2 W K_1^T) / 2, label i for row i; mean over rows, in nats.

  Q_1 is the first half of q's rows and K_2 the second half of k's. k gets no gradient. Equal
  numbers everywhere, W = 0 among them, give log(B / 2). B must be even.
  """
  half = q.shape[0] // 2
  k = jax.lax.stop_gradient(k)
  return (_cross_entropy(q[:half] @ w @ k[half:].T) + _cross_entropy(q[half:] @ w @ k[:half].T)) / 2


def _cross_entropy(score: Float[Array, "N N"]) -> Float[Array, ""]:
  """Mean of -log softmax(row i)[i]."""
  return jnp.mean(jax.nn.logsumexp(score, axis=1) - jnp.diagonal(score))
