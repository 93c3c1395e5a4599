"""The kernels of group_advantage at the sizes of real runs, compiled for devices not here."""

import functools
import time

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.group_advantage import cases, gpu, tpu

pytestmark = pytest.mark.aot
TPUS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
KINDS = (("standardize", "group"), ("standardize", "batch"), ("leave_one_out", "group"),
         ("ranks", "group"), ("minmax", "group"))  # fmt: skip


def programs(module):
  """(name, function, shapes) of every kernel at every size."""
  for case in cases.GROUPS:
    n, g = case.prompts, case.size
    for kind, scale in KINDS:
      options = {"kind": kind, "scale": scale, "ddof": 1, "eps": 1e-4}
      dense = functools.partial(module.group_advantage, **options)
      yield f"{kind} {scale}, {case.name}", dense, {"f": (n, g), "b": (n, g)}
      if kind in ("standardize", "ranks") and scale == "group" and n * g <= 2**13:
        ragged = functools.partial(module.ragged_advantage, num_groups=n, **options)
        yield f"{kind} ragged, {case.name}", ragged, {"f": (n * g,), "i": (n * g,)}
  for case in cases.ROWS:
    shape = case.rows, case.tokens
    yield (
      f"scan, {case.name}",
      functools.partial(scan, module, case.packed),
      dict.fromkeys(("f", "f2", "f3", "f4", "i"), shape),
    )


def scan(module, packed, reward, value, mask, last, segment):
  thin = jnp.full((reward.shape[0], 1), 0.97)
  segment = segment if packed else None
  return (
    module.backward_scan(
      reward, mask, thin, value=value, last=last, gamma=thin, segment=segment
    ),
    module.backward_scan(
      reward, mask, thin, value=None, last=None, gamma=None, segment=segment
    ),
  )  # fmt: skip


def compile_all(module, device, where):
  mesh = Mesh([device], ("x",))
  dtypes = {"f": jnp.float32, "b": jnp.bool_, "i": jnp.int32}
  print(f"\n{where}:")
  for name, f, shapes in programs(module):
    args = [
      jax.ShapeDtypeStruct(shape, dtypes[key[0]], sharding=NamedSharding(mesh, P()))
      for key, shape in shapes.items()
    ]
    start = time.perf_counter()
    compiled = jax.jit(f).lower(*args).compile()
    text = compiled.as_text()
    assert "tpu_custom_call" in text or "triton" in text, name
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"  {name}: {time.perf_counter() - start:.1f} s, temporaries {temporary / 2**20:.2f} MiB")


@pytest.mark.parametrize("name", TPUS)
def test_every_kernel_compiles_for_tpu(name, topology):
  compile_all(tpu, topology(name)[0], name)


def test_every_kernel_compiles_for_h200(h200):
  compile_all(gpu, h200, "H200")


def test_a_scan_compiles_under_shard_map_on_a_slice(topology):
  devices = topology("v5e:2x2")
  mesh = Mesh(devices, ("x",))
  rows = NamedSharding(mesh, P("x"))
  shapes = [jax.ShapeDtypeStruct((512, 1024), jnp.float32, sharding=rows)] * 4
  shapes.append(jax.ShapeDtypeStruct((512, 1024), jnp.int32, sharding=rows))
  f = functools.partial(scan, tpu, True)
  split = jax.shard_map(f, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
  text = jax.jit(split).lower(*shapes).compile().as_text()
  assert "tpu_custom_call" in text and "all-" not in text and "collective" not in text
