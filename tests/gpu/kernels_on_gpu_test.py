"""What only a GPU can show: that the compiled kernels are right, and how fast they are.

`make gpu-check` runs it. Lengths lie between those of the
interpreted tests and of real models; head sizes are those of real models.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import gpu_check
from pallas_kernels import prefix_attention as attention
from pallas_kernels.prefix_attention import gpu_blocks
from pallas_kernels.prefix_attention.cases import CASES, DECODE_CASES

pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU"),
]
# The largest relative error against exact arithmetic.
LIMITS = [(jnp.bfloat16, 1e-2), (jnp.float32, 1e-3)]
limits = pytest.mark.parametrize("dtype, limit", LIMITS, ids=["bfloat16", "float32"])


def middle(case):
  return dataclasses.replace(
    case,
    rows=2,
    prompt=300,
    group=min(case.group, 4),
    completion=min(case.completion, 150),
    trunk=min(case.trunk, 70),
    window=None if case.window is None else 200,
    softcap=None if case.softcap is None else 2.0,
  )


def middle_decode(case):
  return dataclasses.replace(case, rows=2, slots=min(case.slots, 5), prompt=300, columns=150)


def draw(shapes, dtype, seed=0):
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def exact(function):
  """In float32 whose products are not cut: 1e-6, which next to the limits is exact."""

  def call(*arrays):
    with jax.default_matmul_precision("highest"):
      return jax.jit(function)(*(a.astype(jnp.float32) for a in arrays))

  return call


def check_close(found, expected, limit):
  for i, (a, b) in enumerate(zip(found, expected, strict=True)):
    a, b = (np.asarray(x, np.float64) for x in (a.astype(jnp.float32), b))
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error < limit, f"output {i}: {error}"


def skip_unknown(dtype, head_dim):
  if (jnp.dtype(dtype).itemsize, head_dim) not in gpu_blocks.TABLE:
    pytest.skip("the kernels do not take this head size")


@limits
@pytest.mark.parametrize("case", [middle(case) for case in CASES], ids=lambda case: case.name)
def test_training_equals_the_specification(case, dtype, limit):
  skip_unknown(dtype, case.head_dim)
  rows, keys, _ = case.shapes.values()
  trunk = (case.trunk, *keys[2:])
  q, k, v, first_k, first_v, cotangent = draw([rows, keys, keys, trunk, trunk, rows], dtype)
  length = jnp.array([case.prompt - 37, case.prompt], jnp.int32)
  segment = None
  if case.packed:
    cuts = jnp.array([[60, 130, 400], [1, 128, 513]])
    segment = jnp.sum(jnp.arange(case.own)[None, None] >= cuts[:, :, None], axis=1)
    segment = jnp.where(segment == 2, -1, segment)
  dead = jnp.arange(case.prompt)[None] >= length[:, None]
  rest = jnp.zeros((2, case.own), bool) if segment is None else segment < 0
  dead = jnp.concatenate([dead, rest], axis=1)[:, :, None, None]

  def run(implementation, q, k, v, first_k, first_v, cotangent):
    def call(q, k, v, first_k, first_v):
      return attention.prefix_attention(
        q, k, v, length, segment=segment, trunk=(first_k, first_v) if case.trunk else None,
        implementation=implementation, **case.options,
      )  # fmt: skip

    out, back = jax.vjp(call, q, k, v, first_k, first_v)
    grads = back(cotangent)
    return out, *(grads if case.trunk else grads[:3])

  arrays = q, k, v, first_k, first_v, jnp.where(dead, 0, cotangent)
  found = jax.jit(functools.partial(run, "gpu"))(*arrays)
  check_close(found, exact(functools.partial(run, "reference"))(*arrays), limit)
  poisoned = [jnp.where(dead, jnp.nan, a) for a in (q, k, v)]
  again = jax.jit(functools.partial(run, "gpu"))(*poisoned, *arrays[3:])
  for a, b in zip(again, found, strict=True):
    np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))


@limits
@pytest.mark.parametrize("case", [middle_decode(c) for c in DECODE_CASES], ids=lambda c: c.name)
def test_decoding_equals_the_specification(case, dtype, limit):
  skip_unknown(dtype, case.head_dim)
  names = ("q", "k_prefix", "v_prefix", "k", "v")
  arrays = draw([case.shapes[name] for name in names], dtype)
  length = jnp.array([37, case.prompt], jnp.int32)
  visible = jax.random.bernoulli(jax.random.key(9), 0.7, case.shapes["visible"])
  visible = visible.at[..., 100:].set(False).at[0, 0].set(False)

  def run(implementation, q, k_prefix, v_prefix, k, v):
    out = attention.decode_attention(
      q, k_prefix, v_prefix, length, k, v, visible, implementation=implementation, **case.options
    )
    return (out,)

  found = jax.jit(functools.partial(run, "gpu"))(*arrays)
  check_close(found, exact(functools.partial(run, "reference"))(*arrays), limit)


def test_speed_is_measured_and_written():
  result = gpu_check.main([])
  assert result["training"] and result["token_logprob"] and result["decode"]
