"""The GPU kernels compile for an H200 at the sizes of real models. `-s` prints what they take."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import prefix_attention as attention
from pallas_kernels.prefix_attention.cases import CASES, DECODE_CASES, Case, DecodeCase

pytestmark = pytest.mark.aot
KERNELS = ("forward", "dq", "dkv")
# Bytes of registers that do not fit: what the block table says.
SPILLS = {("dkv", 256): 64}
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


@pytest.fixture
def h200_slice(h200, request):
  """Eight of them: one host."""
  here = request.config.pluginmanager.get_plugin(str(Path(__file__).parent / "conftest.py"))
  return topologies.get_topology_desc(
    platform="cuda", topology_name="", target_config=here.H200, topology="1x1x8"
  ).devices


def train(case: Case, sharding, dtype, rows=None):
  """One forward and backward call, lowered."""
  n = rows or case.rows
  spec = lambda shape, kind: jax.ShapeDtypeStruct((n, *shape[1:]), kind, sharding=sharding)
  q, k = (spec(case.shapes[name], dtype) for name in "qk")
  if case.trunk:
    k = spec((n, case.trunk + k.shape[1], *k.shape[2:]), dtype)
  length = spec((n,), jnp.int32)
  segment = spec((n, case.own), jnp.int32) if case.packed else None

  def call(q, k, v, length, segment, cotangent):
    run = lambda q, k, v: attention._PREFIX["gpu"](q, k, v, length, segment=segment, **case.options)
    out, back = jax.vjp(run, q, k, v)
    return out, *back(cotangent)

  return call, (q, k, k, length, segment, q)


def decode(case: DecodeCase, sharding, dtype):
  kinds = {"prefix_length": jnp.int32, "visible": jnp.bool_}
  args = {
    name: jax.ShapeDtypeStruct(shape, kinds.get(name, dtype), sharding=sharding)
    for name, shape in case.shapes.items()
  }
  call = lambda args: attention.decode_attention(**args, implementation="gpu", **case.options)
  return call, (args,)


def compiled(label, call, args, folder):
  start = time.perf_counter()
  lowered = jax.jit(call).lower(*args)
  executable = lowered.compile(compiler_options={"xla_dump_to": str(folder)})
  memory = executable.memory_analysis()
  print(f"{label}: {time.perf_counter() - start:.1f} s, temp {memory.temp_size_in_bytes} B")
  return executable


def resources(folder) -> dict[str, tuple[int, int]]:
  """Kernel -> (registers, bytes spilled), by the ptxas of a CUDA toolkit; {} without one."""
  found = {}
  for ptx in folder.glob("*.ptx") if shutil.which("ptxas") else ():
    name = re.search(r"\.entry prefix_attention_(\w+)", ptx.read_text())
    if name:
      command = ["ptxas", "-v", "-arch=sm_90a", str(ptx), "-o", "/dev/null"]
      said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
      spilled = re.search(r"(\d+) bytes spill stores", said)
      registers = re.search(r"Used (\d+) registers", said)
      assert spilled and registers, said
      found[name[1]] = int(registers[1]), int(spilled[1])
  return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_compiles_without_spilled_registers(case, h200, tmp_path):
  call, args = train(case, SingleDeviceSharding(h200), jnp.bfloat16)
  executable = compiled(case.name, call, args, tmp_path)
  assert all(f"prefix_attention_{name}" in executable.as_text() for name in KERNELS)
  for name, (registers, spilled) in resources(tmp_path).items():
    print(f"  {name}: {registers} registers, {spilled} B spilled")
    assert spilled <= SPILLS.get((name, case.head_dim), 0)


def test_training_needs_memory_for_a_few_copies_of_its_inputs_and_no_scores(h200, tmp_path):
  case = next(case for case in CASES if case.name == "llama-3.1-8b")
  call, args = train(case, SingleDeviceSharding(h200), jnp.bfloat16)
  memory = compiled(case.name, call, args, tmp_path).memory_analysis()
  inputs = sum(a.size * a.dtype.itemsize for a in args if a is not None)
  assert memory.temp_size_in_bytes < inputs
  assert case.pairs() * 2 > 10 * memory.temp_size_in_bytes  # what the scores alone would take


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_training_compiles_in_float32(head_dim, h200, tmp_path):
  case = next(case for case in CASES if case.head_dim == head_dim)
  call, args = train(case, SingleDeviceSharding(h200), jnp.float32)
  compiled(f"{case.name} float32", call, args, tmp_path)
  for name, (registers, spilled) in resources(tmp_path).items():
    print(f"  {name}: {registers} registers, {spilled} B spilled")
    assert spilled == 0


@pytest.mark.parametrize("case", DECODE_CASES, ids=lambda case: case.name)
def test_decoding_compiles_without_spilled_registers(case, h200, tmp_path):
  call, args = decode(case, SingleDeviceSharding(h200), jnp.bfloat16)
  compiled(f"{case.name} decode", call, args, tmp_path)
  for name, (registers, spilled) in resources(tmp_path).items():
    print(f"  {name}: {registers} registers, {spilled} B spilled")
    assert spilled == 0


def test_rows_split_over_a_mesh_compile_without_communication(h200_slice, tmp_path):
  case = CASES[0]
  mesh = Mesh(h200_slice, ("data",))
  call, args = train(case, NamedSharding(mesh, P("data")), jnp.bfloat16)
  split = jax.shard_map(
    lambda q, k, v, length, cotangent: call(q, k, v, length, None, cotangent),
    mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False,
  )  # fmt: skip
  args = args[:4] + args[5:]
  text = compiled("8 devices", split, args, tmp_path).as_text()
  assert "prefix_attention_dkv" in text
  assert not re.search(r"all-(reduce|gather|to-all)|collective-permute|reduce-scatter", text)
