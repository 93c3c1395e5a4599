"""From a config to a running loop: devices, compilation cache, the loop that the config names."""

import os
from pathlib import Path

import jax

from grpo_jax.errors import UserError
from grpo_jax.lookup import unknown

LOOPS = ("llm", "offline")


def cache_folder() -> Path:
  """GRPO_JAX_CACHE, else the user's cache folder."""
  base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(os.environ.get("GRPO_JAX_CACHE") or Path(base) / "grpo_jax")


def launch(config, workdir: Path) -> dict:
  if config.loop not in LOOPS:
    raise unknown("loop", config.loop, LOOPS)
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--workdir={workdir}: cannot be made ({error.strerror})") from error
  if config.loop == "llm":
    from grpo_jax.train import llm as loop
  else:
    from grpo_jax.train import offline as loop
  return loop.run(config, workdir)
