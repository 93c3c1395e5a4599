"""The kernels of token_logprob at the sizes of real models, compiled for devices not here."""

import functools
import re
import time

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.token_logprob import cases, gpu, sharded, tpu

pytestmark = pytest.mark.aot
KINDS = {
  "v4:2x2x1": "TPU v4",
  "v5e:2x2": "TPU v5 lite",
  "v5p:2x2x1": "TPU v5p",
  "v6e:2x2": "TPU v6 lite",
}


def both(form, temperature):
  """All three outputs, and both gradients of a loss that uses all three."""

  def run(hidden, head, target, weight):
    def total(hidden, head):
      out = form(hidden, head, target, jnp.float32(temperature), chunk=256, strided=False)
      return jnp.sum(weight * jnp.stack(out)), out

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, head)

  return run


def compile_case(case, form, place):
  """place: names of the arguments -> sharding."""
  shapes = {
    **case.shapes()._asdict(),
    "weight": jax.ShapeDtypeStruct((3, case.tokens), jnp.float32),
  }
  args = [
    jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place(name)) for name, s in shapes.items()
  ]
  start = time.perf_counter()
  compiled = jax.jit(both(form, case.temperature)).lower(*args).compile()
  return compiled, time.perf_counter() - start


def show(where, case, compiled, seconds, extra=""):
  memory = compiled.memory_analysis()
  print(
    f"\n{where}, {case.name} [{case.tokens}, {case.width}] x {case.vocab}: {seconds:.1f} s, "
    f"temporaries {memory.temp_size_in_bytes / 2**20:.0f} MiB {extra}",
    end="",
  )


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("name", KINDS)
def test_forward_and_backward_compile_for_tpu(name, case, topology):
  shapes = case.shapes()
  blocks = tpu.choose(
    KINDS[name], case.width, shapes.hidden.dtype.itemsize, shapes.head.dtype.itemsize
  )
  mesh = Mesh([topology(name)[0]], ("x",))
  form = functools.partial(tpu.token_logprob, blocks=blocks)
  compiled, seconds = compile_case(case, form, lambda _: NamedSharding(mesh, P()))
  text = compiled.as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 3
  tiles = [f"{t.x}x{t.v}" for t in (blocks.forward, blocks.d_hidden, blocks.d_head)]
  show(name, case, compiled, seconds, f"tiles {' '.join(tiles)}")


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
def test_forward_and_backward_compile_for_h200(case, h200):
  mesh = Mesh([h200], ("x",))
  compiled, seconds = compile_case(case, gpu.token_logprob, lambda _: NamedSharding(mesh, P()))
  assert len(re.findall("gpu.xla.gpu.triton|__gpu.xla.gpu.triton", compiled.as_text())) == 3
  show("H200", case, compiled, seconds)


def collectives(text: str) -> list[str]:
  kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
  return sorted(re.findall(rf"= [^=]*? ({kinds})(?:-start)?\(", text))


@pytest.mark.parametrize("split", ["tokens", "vocabulary"])
def test_the_kernels_compile_under_shard_map_on_a_slice(split, topology):
  """Qwen2.5-7B on four v5e. Over tokens only d head is summed; over the vocabulary [3, X] is
  gathered, its cotangent reduced, and d hidden summed."""
  case = cases.CASES[2]
  mesh = Mesh(topology("v5e:2x2"), ("x",))
  form = functools.partial(tpu.token_logprob, blocks=tpu.choose("TPU v5 lite", case.width, 2, 2))
  specs = {"hidden": P("x"), "head": P(), "target": P("x")}
  if split == "vocabulary":
    specs = {"hidden": P(), "head": P("x"), "target": P()}

  def local(hidden, head, target, temperature):
    call = lambda *a: form(*a, temperature, chunk=0, strided=False)
    if split == "tokens":
      return call(hidden, head, target)
    return sharded.join(call, hidden, head, target, "x")

  def whole(hidden, head, target, temperature, chunk, strided):
    out = P("x") if split == "tokens" else P()
    places = (*specs.values(), P())
    f = jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=out, check_vma=False)
    return f(hidden, head, target, temperature)

  compiled, seconds = compile_case(
    case, whole, lambda name: NamedSharding(mesh, specs.get(name, P()))
  )
  found = collectives(compiled.as_text())
  show(f"v5e:2x2, {split} split", case, compiled, seconds, f"{found}")
  if split == "tokens":
    assert set(found) == {"all-reduce"}
  else:
    assert "all-gather" in found and len(found) <= 3
