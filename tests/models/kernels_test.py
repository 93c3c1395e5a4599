"""The model with kernels in place of plain XLA: the same numbers, on one device and on several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from grpo_jax import sharding
from grpo_jax.models import policy
from grpo_jax.rollout import sampler

MODEL = dataclasses.replace(tiny.FAMILIES["qwen3"], vocab_size=38)  # two parts of 19
ODD = tiny.FAMILIES["qwen3"]  # 37: no parts
# Four prompts: two shards of two.
PROMPT, LENGTH, TOKENS = tiny.problem(MODEL, lengths=(5, 1, 8, 3), group=2)
MASK = np.arange(4) < np.asarray([[4, 2], [3, 1], [4, 4], [2, 3]])[..., None]
WEIGHT = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)
KERNELS = ("tpu_interpret", "gpu_interpret")


def gradient(mesh=None, model=MODEL, **options):
  """(loss, gradient of the parameters) of a batch under `make_forward(**options)`."""
  batch = tiny.batch_of(PROMPT, LENGTH, TOKENS, MASK)
  params = tiny.params_of(model)
  if mesh is not None:
    options["rows"] = sharding.rows(mesh)
    batch = sharding.put(batch, sharding.rows(mesh))
    params = sharding.put(params, sharding.param_specs(params, mesh))
  forward = policy.make_forward(model, **options)

  def loss(params):
    fwd = forward(params, batch)
    return jnp.sum(WEIGHT * fwd.logp) + 0.1 * jnp.sum(WEIGHT * fwd.entropy)

  return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


@functools.cache
def plain(model):
  return gradient(model=model)


def check(got, model=MODEL):
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(plain(model)), strict=True):
    size = max(np.abs(y).max(), 1e-3)
    np.testing.assert_allclose(x / size, y / size, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_loss_and_gradients_under_kernels_are_those_of_plain_xla(name):
  check(gradient(implementation=name, logprob=name))


@pytest.mark.parametrize("model", [MODEL, ODD], ids=["split", "whole"])
def test_on_a_mesh_each_device_runs_the_kernels_on_its_own_rows_heads_and_vocabulary(model):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 2}, jax.devices()[:4])
  attention = "tpu_interpret" if model is MODEL else None
  check(gradient(mesh, model, implementation=attention, logprob="tpu_interpret"), model)


@pytest.mark.parametrize("name", KERNELS)
def test_the_sampler_s_tokens_under_kernels_are_those_of_plain_xla(name):
  keys = jax.random.split(jax.random.key(0), 4)

  def run(implementation):
    return sampler.sample(
      MODEL, tiny.params_of(MODEL), PROMPT, LENGTH, keys,
      group=3, budget=4, stop_ids=(7,), slots=2, implementation=implementation,
    )  # fmt: skip

  a, b = run(None), run(name)
  np.testing.assert_array_equal(a.tokens, b.tokens)
  np.testing.assert_allclose(a.logp, b.logp, atol=2e-5)
