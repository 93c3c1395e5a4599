"""Programs for devices that are not here cannot be read back from the compilation cache."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(autouse=True)
def no_compilation_cache():
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # whether there is one is decided once
  yield
  jax.config.update("jax_enable_compilation_cache", before)
  compilation_cache.reset_cache()
