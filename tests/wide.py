"""Runs code that computes in float32 in float64 instead."""

import contextlib
import sys

import jax
import jax.numpy as jnp
import pytest


class _Wide:
  float32 = jnp.float64

  def __getattr__(self, name):
    return getattr(jnp, name)


@contextlib.contextmanager
def wide():
  """Inside, what models, kernels and sampler call float32 is float64.

  Two forms of one formula then differ by 1e-14, not by 1e-6, and a small error cannot pass for
  rounding. Functions already traced are traced again: their inputs have another dtype.
  """
  ours = ("pallas_kernels", "grpo_jax.models", "grpo_jax.rollout")
  modules = [m for name, m in sys.modules.items() if name.startswith(ours)]
  types = jax.enable_x64(True), jax.numpy_dtype_promotion("standard")  # arange is int64 here
  with pytest.MonkeyPatch.context() as patch, types[0], types[1]:
    for module in modules:
      if getattr(module, "jnp", None) is jnp:
        patch.setattr(module, "jnp", _Wide())
    yield
