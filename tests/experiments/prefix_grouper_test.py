"""The float64 oracle of the study of paper 59 is the model's own repeated and shared form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wide import wide

from experiments.prefix_grouper import claim, exact
from grpo_jax import methods
from grpo_jax.core import units
from grpo_jax.models import policy

SIZE = 2, 3, 7, 4  # prompts, group, prompt, new


def truth_of(problem, params):
  credit = methods.get("grpo").credit((), *problem[:2])
  return exact.repeated(claim.CONFIG, params, problem[1], credit)


@pytest.mark.parametrize("form, shared", [("xla", False), ("xla", True), ("packed", True)])
def test_in_float64_both_forms_equal_the_oracle(form, shared):
  problem, params = claim._problem(SIZE, 0), claim._params(0)
  truth = truth_of(problem, params)
  batch = jax.tree.map(jnp.asarray, claim._laid_out(problem, form, shared))
  credit = methods.get("grpo").credit((), problem[0], batch)
  pull = np.asarray(credit.weight, np.float64) * np.asarray(units.token_adv(credit, batch))
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  with wide():
    forward = policy.make_forward(claim.CONFIG, chunk=0, implementation=claim.FORMS[form][0])

    def loss(params):
      fwd = forward(params, batch)
      return -jnp.sum(pull * fwd.logp), {"logp": fwd.logp, "entropy": fwd.entropy}

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    found = claim._padded(out | {"gradient": gradient}, problem, form, shared)
  for kind in claim.KINDS:
    assert claim._error(found[kind], truth[kind]) * claim.ROUNDING < 1e-12, kind


def test_an_error_of_one_matrix_in_ten_thousand_is_seen():
  problem, params = claim._problem(SIZE, 0), claim._params(0)
  truth = truth_of(problem, params)["gradient"]
  layers = truth["layers"]
  wrong = truth | {"layers": layers | {"k": layers["k"] * (1 + 1e-3)}}
  assert claim._error(truth, truth) == 0
  assert claim._error(wrong, truth) > 100  # where rounding gives some twenty
