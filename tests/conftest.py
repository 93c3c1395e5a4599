"""Flags under which silent bugs become errors: set before jax makes its first array."""

import contextlib
import os
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two test workers that both load libtpu to compile for a described TPU: else the second aborts.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import budget
import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# By config, not by environment: processes that a test starts and kills must not write here.
# A bound on the size turns on the file lock that two test workers need.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".cache/jax"))
jax.config.update("jax_compilation_cache_max_size", 2**30)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

with contextlib.suppress(ImportError):  # a GPU machine may have pytest and jax only
  import hypothesis

  # The first example of a property pays for compilation, so a deadline says nothing.
  hypothesis.settings.register_profile("local", deadline=None)
  hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
  hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def compile_cheaply():
  """Half the time of a fast test is compilation of a program that runs a few times.

  In the environment too, as what a test compares with a process of its own may be compared bitwise.
  """
  jax.config.update("jax_disable_most_optimizations", True)
  os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  if metadata.version("jaxlib").startswith("0.10."):  # a jaxlib that lacks a flag aborts
    flags = os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()


def pytest_addoption(parser):
  budget.addoption(parser)


def pytest_configure(config):
  budget.configure(config)
  if os.environ["JAX_PLATFORMS"] == "cpu" and "not slow" in config.getoption("markexpr"):
    compile_cheaply()
