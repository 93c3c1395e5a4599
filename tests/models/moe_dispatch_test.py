"""Three ways to send tokens to experts, and experts split over devices, against float64 numpy."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax.errors import UserError
from grpo_jax.models.moe import dispatch as moe_dispatch
from grpo_jax.models.moe import mesh as moe_mesh

B, L, D = 4, 6, 8
U = np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32)
ACT = jnp.tanh
# Half the time to compile; these arrays are small.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def experts_by_hand(params, u, expert, weight):
  """A token and one of its experts at a time."""
  p = {name: np.asarray(x, np.float64) for name, x in params.items()}
  out = np.zeros((len(u), p["down"].shape[2]))
  for n, e in np.ndindex(*expert.shape):
    i = expert[n, e]
    hidden = np.tanh(u[n] @ p["up"][i] + p["up_bias"][i])
    out[n] += weight[n, e] * (hidden @ p["down"][i] + p["down_bias"][i])
  return out


def routing(tokens, experts, k, kind):
  rng = np.random.default_rng(1)
  if kind == "one expert has all":
    expert = np.tile(np.arange(k), (tokens, 1))
  else:
    used = experts - 2 if kind == "two have none" else experts
    expert = np.stack([rng.permutation(used)[:k] for _ in range(tokens)])
  return expert.astype(np.int32), rng.uniform(size=(tokens, k)).astype(np.float32)


def expert_params(experts, out=4):
  rng = np.random.default_rng(2)
  shapes = jax.eval_shape(lambda key: moe_dispatch.init(key, experts, D, 6, out), jax.random.key(0))
  return {name: rng.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}


def both(params, u, expert, weight, way):
  """((sum of sines, outputs), gradients by parameters, tokens and weights)."""

  def loss(params, u, weight):
    y = moe_dispatch.run(params, u, expert, weight, ACT, way)
    return jnp.sum(jnp.sin(y)), y

  return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, u, weight)


value_and_gradient = jit(both, static_argnums=4)


@pytest.mark.parametrize("kind", ["random", "two have none", "one expert has all"])
@pytest.mark.parametrize("way", moe_dispatch.WAYS)
def test_every_way_gives_each_token_the_sum_over_its_experts(way, kind):
  params, u = expert_params(5), U.reshape(-1, D)
  expert, weight = routing(len(u), 5, 2, kind)
  (_, y), _ = value_and_gradient(params, u, expert, weight, way)
  np.testing.assert_allclose(y, experts_by_hand(params, u, expert, weight), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["random", "two have none", "one expert has all"])
@pytest.mark.parametrize("way", ["ragged", "blocks"])
def test_gradients_of_every_way_are_those_of_the_dense_one(way, kind):
  params, u = expert_params(5), U.reshape(-1, D)
  expert, weight = routing(len(u), 5, 2, kind)
  _, found = value_and_gradient(params, u, expert, weight, way)
  _, expected = value_and_gradient(params, u, expert, weight, "dense")
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
  if kind == "two have none":
    assert not np.any(found[0]["up"][3:]) and np.any(found[0]["up"][0])


@pytest.mark.parametrize("way", moe_dispatch.WAYS)
def test_experts_that_are_not_here_add_nothing(way):
  params, u = expert_params(5), U.reshape(-1, D)
  expert, weight = routing(len(u), 5, 2, "random")
  expert[::3, 0], expert[1::3, 1] = -2, 5
  here = (expert >= 0) & (expert < 5)
  (_, y), (grads, _, by_weight) = value_and_gradient(params, u, expert, weight, way)
  expected = experts_by_hand(params, u, np.where(here, expert, 0), weight * here)
  np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
  _, (dense, _, _) = value_and_gradient(params, u, expert, weight, "dense")
  np.testing.assert_allclose(grads["up"], dense["up"], rtol=0, atol=2e-5)
  assert not np.any(np.asarray(by_weight)[~here])


@pytest.mark.parametrize("way", moe_dispatch.WAYS)
def test_every_way_may_be_vmapped(way):
  params, u = expert_params(5), U.reshape(-1, D)
  two = [routing(len(u), 5, 2, kind) for kind in ("random", "two have none")]
  expert, weight = (np.stack(x) for x in zip(*two, strict=True))
  twice = jax.tree.map(lambda x: np.stack([x, -x]), params)
  many = jax.vmap(lambda *x: both(*x, way))
  together = jit(many)(twice, np.stack([u, u]), expert, weight)
  for i in range(2):
    alone = value_and_gradient(
      jax.tree.map(lambda x, i=i: x[i], twice), u, expert[i], weight[i], way
    )
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
      np.testing.assert_allclose(a[i], b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("block", [1, 4, 16])
def test_sorted_rows_hold_every_assignment_once_and_by_expert(block):
  expert, _ = routing(24, 5, 3, "two have none")
  expert[3, 1] = 7  # one that is not here: behind all others
  order = jit(functools.partial(moe_dispatch.sort, experts=5, block=block))(expert)
  real = np.asarray(order.real)
  assert sorted(np.asarray(order.assignment)[real]) == list(range(72))
  row = np.asarray(order.row)
  for n, i in np.ndindex(24, 3):
    assert real[row[n, i]] and order.assignment[row[n, i]] == 3 * n + i
  ends = np.cumsum(order.size)
  for e in range(5):
    assert order.size[e] % block == 0
    inside = (row >= ends[e] - order.size[e]) & (row < ends[e])
    np.testing.assert_array_equal(inside, expert == e)


@pytest.mark.slow
def test_a_training_step_by_blocks_takes_no_longer_than_by_one_hot_weights():
  tokens, experts = 1952, 8  # T2MIR-DPT on Darkroom
  key = jax.random.key(0)
  params = moe_dispatch.init(key, experts, 128, 256, 64)
  u = jax.random.normal(key, (tokens, 128))
  expert, weight = routing(tokens, experts, 2, "random")
  step = jax.jit(both, static_argnums=4)
  taken = {way: [] for way in ("blocks", "dense")}
  for _ in range(8):
    for way, times in taken.items():
      start = time.perf_counter()
      jax.block_until_ready(step(params, u, expert, weight, way))
      times.append(time.perf_counter() - start)
  assert min(taken["blocks"]) < min(taken["dense"])  # measured: about half


def test_an_unknown_way_is_refused():
  with pytest.raises(UserError, match="^dispatch: unknown name .scatter.; known: blocks, dense"):
    moe_dispatch.run(expert_params(5), U[0], *routing(6, 5, 2, "random"), ACT, "scatter")


# ---- expert parallelism --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8,), (2, 4), (4, 2)])
@pytest.mark.parametrize("way", ["ragged", "blocks", None])
def test_experts_split_over_devices_give_what_one_device_gives(shape, way):
  names = ("tensor",) if len(shape) == 1 else ("data", "tensor")
  where = NamedSharding(Mesh(np.asarray(jax.devices()).reshape(shape), names), P("tensor"))
  params, u = expert_params(8), U.reshape(-1, D)
  for tokens in (24, 21):  # 21: not divided by the devices
    expert, weight = routing(tokens, 8, 2, "two have none")

    def loss(params, u, weight, where, way, expert=expert):
      y = moe_mesh.run(where, params, u, expert, weight, ACT, way)
      return jnp.sum(jnp.sin(y)), y

    found = []
    for place, name in ((where, way), (None, "dense")):
      f = jax.value_and_grad(
        functools.partial(loss, where=place, way=name), (0, 1, 2), has_aux=True
      )
      found.append(jit(f)(params, u[:tokens], weight))
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=5e-5)


def test_experts_that_the_devices_do_not_divide_are_refused():
  where = NamedSharding(Mesh(np.asarray(jax.devices()), ("tensor",)), P("tensor"))
  with pytest.raises(UserError, match="^experts=6: must be a multiple of mesh.tensor=8"):
    moe_mesh.run(where, expert_params(6), U[0], *routing(6, 6, 2, "random"), ACT)
