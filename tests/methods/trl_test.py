"""Values and gradients of TRL's loss code (golden/trl.json, written by make_trl_golden.py)."""

import json
import pathlib

import numpy as np
import problems
import pytest

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "trl.json").read_text())

CASES = {
  "grpo": ("grpo", {}),
  "grpo_wide": ("grpo", {"eps_low": 0.1, "eps_high": 0.3, "dual_clip": 1.5}),
  "grpo_kl": ("grpo", {"beta_kl": 0.04, "kl": "k3"}),
  "grpo_kl_corrected": ("grpo", {"beta_kl": 0.04, "kl": "rk3"}),
  "grpo_batch_scale": ("grpo", {"scale": "batch"}),
  "grpo_on_policy": ("grpo", {}),
  "dr_grpo": ("dr_grpo", {"max_tokens": GOLDEN["max_tokens"]}),
  "dapo": ("dapo", {}),
  "dapo_entropy": (
    "grpo",
    {"aggregate": "token_mean", "eps_high": 0.28, "beta_entropy": 0.01},
  ),
  "gspo": ("gspo", {"eps_low": 0.05, "eps_high": 0.1}),
  "cispo": ("cispo", {"eps_high": 0.3}),  # TRL's epsilon_high is the bound itself, here 1.3
  "rloo": ("rloo", {}),
}


def problem():
  n, g, t = GOLDEN["shape"]
  batch = {k: np.asarray(v, np.float32) for k, v in GOLDEN["batch"].items()}
  length = batch["length"].reshape(n, g, 1)
  fields = {k: batch[k].reshape(n, g, t) for k in ("logp", "logp_old", "logp_ref", "entropy")}
  return problems.Problem(
    reward=batch["reward"].reshape(n, g),
    alive=np.ones((n, g), bool),
    truncated=np.zeros((n, g), bool),
    trained=np.arange(t) < length,
    tokens=np.zeros((n, g, t), np.int32),
    fields=fields,
  )


def test_every_golden_case_is_compared():
  assert set(CASES) == set(GOLDEN["cases"])


@pytest.mark.parametrize("golden", CASES)
def test_value_and_gradient_equal_those_of_trl(golden):
  name, kwargs = CASES[golden]
  expected, p = GOLDEN["cases"][golden], problem()
  if golden == "grpo_on_policy":
    p.fields["logp_old"] = p.fields["logp"]
  loss, _, grad, *_ = problems.run(problems.get(name, **kwargs), p)
  if name != "rloo":  # TRL writes -A ratio, here -A logp: one gradient, another value
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5, atol=1e-6)
  shape = p.trained.shape
  np.testing.assert_allclose(
    np.where(p.trained, grad, 0), np.reshape(expected["grad"], shape), rtol=2e-5, atol=1e-7
  )
  assert np.abs(grad).max() > 1e-2


def test_on_policy_without_old_log_probabilities_equals_trl():
  p, expected = problem(), GOLDEN["cases"]["grpo_on_policy"]
  method = problems.get("grpo")
  rollouts, batch, fwd, place = problems.lay_out(p, "flat")
  batch = batch.replace(logp_old=None)
  credit = method.credit((), rollouts, batch)
  loss, _, grad, _ = problems.value_and_grad(method, fwd, batch, credit)
  np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5, atol=1e-6)
  found = np.where(p.trained, np.asarray(grad)[place], 0)
  np.testing.assert_allclose(found, np.reshape(expected["grad"], found.shape), rtol=2e-5, atol=1e-7)
