"""From a config to a running loop: hosts, compilation cache, the loop that the config names."""

import importlib
import importlib.util
import os
import warnings
from pathlib import Path

import jax

from grpo_jax.errors import UserError
from grpo_jax.models.embedded import cache_folder
from grpo_jax.names import unknown

# Modules of train/, by the name in a config.
LOOPS = ("llm", "offline", "fused", "control", "in_context")
# Set by launchers that jax can ask for the coordinator, the number of processes and our own.
LAUNCHED = (
  "JAX_COORDINATOR_ADDRESS",
  "OMPI_MCA_orte_hnp_uri",  # Open MPI up to version 4
  "SLURM_STEP_NODELIST",
  "JOB_COMPLETION_INDEX",  # an Indexed Job or JobSet of Kubernetes
)
# The number of processes as launchers give it, whether jax knows them or not.
COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def join_hosts() -> bool:
  """Joins the processes that a launcher started into one job; False if there was no launcher.

  Before anything touches a device. Nothing is called for a process that was started by hand, so
  a run on a laptop waits for nobody.
  """
  on_tpu = importlib.util.find_spec("libtpu") is not None  # jax asks the machine then
  joined = False
  if on_tpu or any(name in os.environ for name in LAUNCHED):
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # jax's on Kubernetes without its Python package
      try:
        jax.distributed.initialize()
        joined = True
      except ValueError as error:
        if "coordinator_address" not in str(error):
          raise UserError(f"jax.distributed: {error}") from error
  wanted = max((int(os.environ[name]) for name in COUNTS if name in os.environ), default=1)
  if wanted > 1 and not joined:
    raise UserError(
      f"a launcher started {wanted} processes, but jax does not know it: each would train alone; "
      "use one of those in docs/scale.md"
    )
  return joined


def use_cache() -> None:
  """Compiled programs are kept for the next run, unless the user has set a folder for them."""
  if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def launch(config, workdir: Path) -> dict:
  if config.loop not in LOOPS:
    raise unknown("loop", config.loop, LOOPS)
  use_cache()
  loop = importlib.import_module(f"grpo_jax.train.{config.loop}")
  say = print if jax.process_index() == 0 else lambda text: None
  return loop.run(config, workdir, say)
