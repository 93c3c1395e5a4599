"""The attention kernels at the sizes of real models, compiled for TPUs that are not here."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels import prefix_attention as attention
from pallas_kernels.prefix_attention import tpu
from pallas_kernels.prefix_attention.cases import CASES, DECODE_CASES

pytestmark = pytest.mark.aot
# Topology and the name that jax gives the device.
KINDS = {
  "v4:2x2x1": "TPU v4",
  "v5e:2x2": "TPU v5 lite",
  "v5p:2x2x1": "TPU v5",
  "v6e:2x2": "TPU v6 lite",
}
kinds = pytest.mark.parametrize("name", KINDS)
by_name = lambda cases: pytest.mark.parametrize("case", cases, ids=lambda c: c.name)


def blocks(case, name):
  return tpu.default_blocks(case.heads // case.kv_heads, case.head_dim, KINDS[name])


def arguments(case, where):
  """q, k, v, prefix_length, trunk, segment as shapes."""
  shaped = lambda shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
  trunk = (shaped((case.trunk, case.kv_heads, case.head_dim)),) * 2 if case.trunk else None
  segment = shaped((case.rows, case.own), jnp.int32) if case.packed else None
  arrays = (shaped(shape) for shape in case.shapes.values())
  return *arrays, shaped((case.rows,), jnp.int32), trunk, segment


def value_and_gradients(case, blocks):
  def run(q, k, v, length, trunk, segment):
    def call(q, k, v, trunk):
      return attention.prefix_attention(
        q, k, v, length, trunk=trunk, segment=segment, implementation="tpu", blocks=blocks,
        **case.options,
      )  # fmt: skip

    out, back = jax.vjp(call, q, k, v, trunk)
    return out, *back(out)

  return run


def vmem(hlo: str) -> dict[str, int]:
  """Bytes of vector memory of every kernel of a compiled program."""
  found = {}
  for line in hlo.splitlines():
    if 'custom_call_target="tpu_custom_call"' in line:
      used = re.search(
        r'"used_scoped_memory_configs":\[\{"memory_space":"1".*?"size":"(\d+)"', line
      )
      name = re.search(r"prefix_attention_(\w+?)(?:\.\d+)? =", line)
      found[name[1].strip("_") if name else "?"] = int(used[1]) if used else 0
  return found


def compile_for(call, args, label):
  start = time.perf_counter()
  compiled = jax.jit(call).lower(*args).compile()
  seconds = time.perf_counter() - start
  used = vmem(compiled.as_text())
  shown = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in used.items())
  temp = compiled.memory_analysis().temp_size_in_bytes / 2**20
  print(f"\n{label}: {seconds:.1f} s; VMEM MiB: {shown}; temporaries {temp:.0f} MiB", end="")
  return compiled, used


@kinds
@by_name(CASES)
def test_forward_and_backward_compile(case, name, topology):
  mesh = Mesh(np.asarray(topology(name)[:1]), ("x",))
  args = arguments(case, NamedSharding(mesh, PartitionSpec()))
  call = value_and_gradients(case, blocks(case, name))
  _, used = compile_for(call, args, f"{case.name} on {name}")
  assert set(used) == {"forward", "query", "key"}
  assert all(0 < size < 16 * 2**20 for size in used.values())


@kinds
@by_name(DECODE_CASES)
def test_decoding_compiles_and_copies_no_cache(case, name, topology):
  """Caches come in the order of their axes, as the loop over tokens carries them: left to itself,
  the compiler lays a lone program's arguments out by their sizes, and would turn small heads."""
  mesh = Mesh(np.asarray(topology(name)[:1]), ("x",))
  where = NamedSharding(mesh, PartitionSpec())
  dtypes = {"prefix_length": jnp.int32, "visible": jnp.bool_}
  args = [
    jax.ShapeDtypeStruct(shape, dtypes.get(field, jnp.bfloat16), sharding=in_order(shape, where))
    for field, shape in case.shapes.items()
  ]

  def call(*args):
    return attention.decode_attention(
      *args, implementation="tpu", blocks=blocks(case, name), **case.options
    )

  compiled, used = compile_for(call, args, f"{case.name} on {name}, decode")
  assert set(used) == {"decode"}
  for field in ("k", "k_prefix"):
    dims = ",".join(map(str, case.shapes[field]))
    assert not re.findall(rf"= bf16\[{dims}\]\S* (?:copy|transpose|fusion)\(", compiled.as_text())


def in_order(shape, where):
  return Format(Layout(tuple(range(len(shape)))), where)


def test_rows_split_over_a_slice_compile_without_collectives(topology):
  case, name = CASES[0], "v5e:2x2"
  mesh = Mesh(np.asarray(topology(name)), ("rows",))
  rows = PartitionSpec("rows")
  args = arguments(case, NamedSharding(mesh, rows))
  call = jax.shard_map(
    value_and_gradients(case, blocks(case, name)),
    mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False,
  )  # fmt: skip
  compiled, used = compile_for(call, args, f"{case.name} over {name}")
  assert set(used) == {"forward", "query", "key"}
  assert not re.search(r" (all-\w+|reduce-scatter|collective-\w+)\(", compiled.as_text())
