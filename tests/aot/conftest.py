"""Devices that are not here, described well enough for their compilers."""

import importlib.util

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Figures of one H200: the text form of stream_executor.GpuTargetConfigProto.
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  name: "NVIDIA H200 141GB HBM3e"
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
  driver_version: "13.0.0" runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200 141GB HBM3e"
"""


@pytest.fixture(autouse=True)
def no_compilation_cache():
  """What was compiled for another device cannot be read back from the cache."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # whether there is one is decided once
  yield
  jax.config.update("jax_enable_compilation_cache", before)
  compilation_cache.reset_cache()


@pytest.fixture
def topology(monkeypatch):
  """Devices of a TPU slice by name, as "v5e:2x2"; needs libtpu and no TPU."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("no libtpu: `make test-aot`")
  # Else libtpu asks the cloud which machine this is, and says at length that nobody answers.
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
  monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-64")
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
  from jax.experimental import topologies

  def devices(name: str):
    kwargs = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **kwargs).devices

  return devices


@pytest.fixture
def h200():
  """The device of one described H200; needs the CUDA plug-in and no GPU."""
  if importlib.util.find_spec("jax_plugins") is None:
    pytest.skip("no CUDA plug-in: `make test-aot`")
  from jax.experimental import topologies

  return topologies.get_topology_desc(
    platform="cuda", topology_name="", target_config=H200, topology="1x1x1"
  ).devices[0]
