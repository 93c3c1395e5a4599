"""Flags under which silent bugs become errors: set before jax makes its first array."""

import contextlib
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two test workers that both load libtpu to compile for a described TPU: else the second aborts.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

with contextlib.suppress(ImportError):  # a GPU machine may have pytest and jax only
  import hypothesis

  # The first example of a property pays for compilation, so a deadline says nothing.
  hypothesis.settings.register_profile("local", deadline=None)
  hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
  hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
