"""A T2MIR layer, its gradients and its experts split over a slice compile for TPUs not here."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax.models.in_context import transformer as in_context
from grpo_jax.models.moe import layer as moe

pytestmark = pytest.mark.aot
TPUS = ("v4:2x2x1", "v5e:2x2", "v6e:2x2")
# T2MIR-DPT on HalfCheetah, its layer with experts: 32 sequences of 601 tokens; 8 experts of each
# kind, for a slice of 4 to divide.
LAYER = moe.MoEConfig(experts=8, hidden=256, task_experts=8, skip=1, dispatch="ragged")
ROWS, TOKENS, WIDTH = 32, 601, 128


def shapes(sharding_of, tree):
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(path)), tree
  )


def gradient(where, params, u, key):
  def loss(params, u):
    y, seen = moe.apply(
      LAYER, params, u, act=jax.nn.leaky_relu, key=jax.random.wrap_key_data(key), where=where
    )
    return jnp.sum(y**2) + seen.balance

  return jax.value_and_grad(loss, argnums=(0, 1))(params, u)


def compile_layer(mesh, where=None):
  everywhere = NamedSharding(mesh, P())
  params = jax.eval_shape(functools.partial(moe.init, LAYER, WIDTH), jax.random.key(0))
  at = lambda path: where if where and path[1].key == "experts" else everywhere
  rows = NamedSharding(mesh, P(mesh.axis_names))
  return (
    jax.jit(functools.partial(gradient, where))
    .lower(
      shapes(at, params),
      jax.ShapeDtypeStruct((ROWS, TOKENS, WIDTH), jnp.float32, sharding=rows),
      jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=everywhere),
    )
    .compile()
  )


@pytest.mark.parametrize("name", TPUS)
def test_layer_and_gradients_compile_with_grouped_products(name, topology):
  compiled = compile_layer(Mesh([topology(name)[0]], ("tensor",)))
  assert "tpu_custom_call" in compiled.as_text()  # XLA's kernel for ragged_dot
  temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20
  print(f"\n{name}: temporaries {temporary:.0f} MiB, {compiled.cost_analysis()['flops']:.3g} flops")


def test_layer_compiles_with_experts_split_over_a_slice(topology):
  mesh = Mesh(topology("v5e:2x2"), ("tensor",))
  compiled = compile_layer(mesh, NamedSharding(mesh, P("tensor")))
  text = compiled.as_text()
  assert "all-gather" in text and "reduce-scatter" in text


def test_a_t2mir_transformer_compiles_with_its_cache(topology):
  mesh = Mesh([topology("v5e:2x2")[0]], ("x",))
  config = in_context.InContextConfig(
    inputs=8, outputs=5, positions=512, hidden=64, heads=8, modalities=(2, 8, 1), lead=1,
    moe=moe.MoEConfig(dispatch="ragged", skip=1),
  )  # fmt: skip
  at = lambda tree: shapes(lambda path: NamedSharding(mesh, P()), tree)
  params = at(jax.eval_shape(functools.partial(in_context.init, config), jax.random.key(0)))
  x = at(jax.ShapeDtypeStruct((64, 301, 8), jnp.float32))

  def loss(params, x):
    return jnp.sum(in_context.apply(config, params, x).outputs ** 2)

  jax.jit(jax.grad(loss)).lower(params, x).compile()
  cache = at(jax.eval_shape(lambda: in_context.open_cache(config, 64, 512)))
  step = jax.jit(functools.partial(in_context.extend, config), donate_argnums=1)
  step.lower(params, cache, at(jax.ShapeDtypeStruct((64, 1, 8), jnp.float32))).compile()
