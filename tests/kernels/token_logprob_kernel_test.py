"""The Pallas kernels of token_logprob, and its form over a split vocabulary, against reference."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels import token_logprob as op
from pallas_kernels.token_logprob import cases, gpu, tpu

TILE = tpu.Tile(128, 128)
KERNELS = {
  "tpu": functools.partial(tpu.token_logprob, blocks=tpu.Blocks(TILE, TILE, TILE), interpret=True),
  "gpu": functools.partial(gpu.token_logprob, blocks=gpu.Blocks(64, 128, 32), interpret=True),
}
CHECK = {"reference": op.TABLE["reference"], **KERNELS}
kernels = pytest.mark.parametrize("name", KERNELS)
NAMES = ("logp", "entropy", "lse", "d hidden", "d head")


def draw(tokens, width, vocab, seed=0):
  rng = np.random.default_rng(seed)
  hidden, head = rng.normal(size=(tokens, width)), rng.normal(size=(vocab, width))
  f32 = (jnp.asarray(a, jnp.float32) for a in (2 * hidden / width**0.5, head))
  target = jnp.asarray(rng.integers(0, vocab, tokens), jnp.int32)
  return *f32, target, jnp.asarray(rng.normal(size=(3, tokens)), jnp.float32)


@functools.cache
def compiled(name):
  def run(hidden, head, target, weight, temperature):
    def total(hidden, head):
      out = CHECK[name](hidden, head, target, temperature, chunk=0, strided=False)
      return jnp.sum(weight * jnp.stack(out)), out

    grads, out = jax.grad(total, argnums=(0, 1), has_aux=True)(hidden, head)
    return *out, *grads

  return jax.jit(run)


def run(name, data, temperature=1.0):
  return compiled(name)(*data, jnp.float32(temperature))


def close(found, expected, rtol=0.0, atol=2e-5):
  for name, a, b in zip(NAMES, found, expected, strict=True):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


@kernels
@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
def test_values_and_all_gradients_equal_reference(name, case):
  small = case.small()
  data = draw(small.tokens, small.width, small.vocab)
  close(run(name, data, case.temperature), run("reference", data, case.temperature))


@kernels
@settings(max_examples=2, deadline=None, derandomize=True)
@given(tokens=st.integers(1, 140), vocab=st.integers(2, 300), width=st.integers(1, 40))
def test_any_shape_equals_reference(name, tokens, vocab, width):
  data = draw(tokens, width, vocab, seed=tokens)
  close(run(name, data), run("reference", data), atol=4e-5)


@kernels
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32")], ids=str)
def test_half_precision_inputs_are_summed_in_float32(name, dtypes):
  """Against float32 sums of the same rounded inputs; only d logits may be rounded on the way."""
  hidden, head, target, weight = draw(131, 24, 150)
  half = hidden.astype(dtypes[0]), head.astype(dtypes[1]), target, weight
  found = run(name, half)
  assert [str(x.dtype) for x in found] == ["float32"] * 3 + list(dtypes)
  full = (*(x.astype(jnp.float32) for x in half[:2]), target, weight)
  expected = run("reference", full)
  np.testing.assert_allclose(jnp.stack(found[:3]), jnp.stack(expected[:3]), rtol=0, atol=1e-5)
  for a, b in zip(found[3:], expected[3:], strict=True):
    assert np.abs(np.asarray(a, np.float32) - b).max() < 0.01 * np.abs(b).max()


@kernels
def test_blocks_of_tokens_without_cotangent_may_hold_nan(name):
  hidden, head, target, weight = draw(300, 16, 150)
  silent = slice(128, 256)
  weight = weight.at[:, silent].set(0)
  plain = run(name, (hidden, head, target, weight))
  close(plain, run("reference", (hidden, head, target, weight)))
  found = run(name, (hidden.at[silent].set(jnp.nan), head, target, weight))
  np.testing.assert_array_equal(found[4], plain[4])
  np.testing.assert_array_equal(found[3], plain[3])
  assert not found[3][silent].any() and found[3][0].any()


@kernels
def test_extreme_logits_give_finite_exact_values(name):
  vocab = 150
  z = np.zeros((4, vocab), np.float32)
  z[0, 3], z[1], z[2, :2], z[3] = 1e4, -1e4, 1e4, np.linspace(-1e4, 1e4, vocab)
  target = jnp.asarray([4, 0, 1, vocab - 1], jnp.int32)
  data = jnp.asarray(z), jnp.eye(vocab), target, jnp.ones((3, 4))
  found, expected = run(name, data), run("reference", data)
  assert all(np.isfinite(x).all() for x in found)
  close(found, expected, rtol=1e-6, atol=5e-5)  # the reference itself is off by 3e-5


@kernels
def test_unsupported_inputs_are_refused_in_one_line(name):
  hidden, head, target, _ = draw(4, 8, 16)
  call = functools.partial(KERNELS[name], chunk=0)
  for f in (call, functools.partial(op.token_logprob, implementation=f"{name}_interpret")):
    with pytest.raises(NotImplementedError, match="hidden: float16"):
      f(hidden.astype(jnp.float16), head, target, strided=False, temperature=1.0)
    with pytest.raises(NotImplementedError, match="shard_map"):
      f(hidden, head, target, strided=True, temperature=1.0)


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
def test_a_refusal_moves_on_to_xla(monkeypatch, backend):
  hidden, head, target, _ = draw(4, 8, 16)
  expected = op.reference(hidden, head, target)
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  found = op.token_logprob(hidden, head, target, strided=True)
  np.testing.assert_allclose(jnp.stack(found), jnp.stack(expected), rtol=0, atol=1e-5)


def test_an_unknown_implementation_is_refused_by_name():
  with pytest.raises(ValueError, match="implementation='cuda'.*gpu_interpret"):
    op.token_logprob(*draw(4, 8, 16)[:3], implementation="cuda")


def test_blocks_say_what_is_wrong_with_them():
  for make, message in (
    (lambda: tpu.Tile(64, 128), "multiples of 128"),
    (lambda: tpu.Blocks(TILE, TILE, TILE, vmem=5), "vmem=5"),
    (lambda: gpu.Blocks(x=48), "x=48.*power of two"),
    (lambda: gpu.Blocks(warps=3), "warps=3"),
    (lambda: gpu.Blocks(stages=0), "stages=0"),
  ):
    with pytest.raises(ValueError, match=message):
      make()
  with pytest.raises(NotImplementedError, match="width 65536"):
    tpu.choose("TPU v4", 65536, 2, 2)
  assert tpu.choose("TPU v6 lite", 4096, 2, 2).forward.x > tpu.choose("", 4096, 2, 2).forward.x


def test_the_kernel_runs_inside_shard_map_over_tokens():
  hidden, head, target, weight = draw(8 * 20, 8, 150)
  mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  form = functools.partial(KERNELS["tpu"], chunk=0, strided=False)

  def split(hidden, head, target):
    spec = P("d"), P(), P("d")
    f = lambda *a: form(*a, jnp.float32(1))
    out = jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=P("d"), check_vma=False)
    return jnp.stack(out(hidden, head, target))

  total = lambda hidden, head: jnp.sum(weight * split(hidden, head, target))
  found = jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, head)
  expected = run("reference", (hidden, head, target, weight))
  for a, b in zip(found, expected[3:], strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


# ---- a vocabulary split over devices ------------------------------------------------------------


def collectives(compiled) -> list[str]:
  kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
  return sorted(re.findall(rf"= [^=]*? ({kinds})(?:-start)?\(", compiled.as_text()))


def split_vocabulary(check_vma, implementation, chunk):
  mesh = jax.make_mesh((8,), ("t",), axis_types=(jax.sharding.AxisType.Auto,))

  def local(hidden, head, target):
    out = op.token_logprob_sharded(
      hidden, head, target, 0.7, axis_name="t", chunk=chunk, implementation=implementation
    )
    return jnp.stack(out)

  spec = P(), P("t"), P()
  return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=check_vma)


@pytest.mark.parametrize(
  "check_vma, implementation, chunk",
  [(True, "xla", 0), (True, "xla", 16), (False, "xla", 16), (False, "tpu_interpret", 0)],
)
def test_a_split_vocabulary_gives_the_whole_ones_values_and_gradients(
  check_vma, implementation, chunk
):
  hidden, head, target, weight = draw(37, 8, 8 * 19)
  form = split_vocabulary(check_vma, implementation, chunk)

  def both(hidden, head):
    total = lambda hidden, head: (jnp.sum(weight * (out := form(hidden, head, target))), out)
    return jax.grad(total, argnums=(0, 1), has_aux=True)(hidden, head)

  program = jax.jit(both).lower(hidden, head).compile()
  grads, out = program(hidden, head)
  close((*out, *grads), run("reference", (hidden, head, target, weight), 0.7))
  forward = jax.jit(form).lower(hidden, head, target).compile()
  assert collectives(forward) == ["all-gather"]
  # Without vma the cotangents of the copies of an output are summed: a reduce-scatter more.
  assert len(collectives(program)) == (2 if check_vma else 3), collectives(program)


def test_a_gradient_taken_inside_shard_map_is_exact_too():
  hidden, head, target, weight = draw(37, 8, 8 * 19)
  mesh = jax.make_mesh((8,), ("t",), axis_types=(jax.sharding.AxisType.Auto,))

  def local(hidden, head):
    def total(hidden, head):
      out = op.token_logprob_sharded(hidden, head, target, 0.7, axis_name="t")
      return jnp.sum(weight * jnp.stack(out))

    return jax.grad(total, argnums=(0, 1))(hidden, head)

  f = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("t")), out_specs=(P(), P("t")))
  expected = run("reference", (hidden, head, target, weight), 0.7)[3:]
  for a, b in zip(jax.jit(f)(hidden, head), expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
