"""Experts: dispatch against float64 numpy, gates and losses against what papers 04 and 57 say."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from grpo_jax import methods
from grpo_jax.core import contrastive
from grpo_jax.errors import UserError
from grpo_jax.models.moe import dispatch as moe_dispatch
from grpo_jax.models.moe import gates as moe_gates
from grpo_jax.models.moe import layer as moe

B, L, D = 4, 6, 8
CONFIG = moe.MoEConfig(experts=5, top_k=2, hidden=6, task_experts=3)
U = np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32)
ACT = jnp.tanh
# Half the time to compile; these arrays are small.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def params_of(config, seed=0):
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(functools.partial(moe.init, config, D), jax.random.key(0))
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@functools.partial(jit, static_argnums=0)
def run(config, params, u=U, **options):
  return moe.apply(config, params, u, act=ACT, **options)


def experts_by_hand(params, u, expert, weight):
  """A token and one of its experts at a time."""
  p = {name: np.asarray(x, np.float64) for name, x in params.items()}
  out = np.zeros((len(u), p["down"].shape[2]))
  for n, e in np.ndindex(*expert.shape):
    i = expert[n, e]
    hidden = np.tanh(u[n] @ p["up"][i] + p["up_bias"][i])
    out[n] += weight[n, e] * (hidden @ p["down"][i] + p["down_bias"][i])
  return out


def logits_by_hand(gate, u):
  return np.tanh(u @ np.asarray(gate["w1"], np.float64)) @ np.asarray(gate["w2"], np.float64)


def softmax(z):
  z = np.exp(z - z.max(-1, keepdims=True))
  return z / z.sum(-1, keepdims=True)


# ---- gates ---------------------------------------------------------------------------------------


def test_layer_in_evaluation_equals_numpy():
  params = params_of(CONFIG)
  y, seen = run(CONFIG, params)
  u = U.reshape(-1, D).astype(np.float64)
  halves = []
  for name in ("token", "task"):
    z = logits_by_hand(params[name]["gate"], u)
    expert = np.argsort(-z, axis=1)[:, :2]
    weight = softmax(np.take_along_axis(z, expert, axis=1))
    halves.append(experts_by_hand(params[name]["experts"], u, expert, weight))
    np.testing.assert_array_equal(seen.routes[f"{name}_expert"].reshape(-1, 2), expert)
    gate = np.zeros_like(z)
    np.put_along_axis(gate, expert, weight, axis=1)
    np.testing.assert_allclose(seen.routes[f"{name}_gate"].reshape(gate.shape), gate, atol=1e-6)
  expected = np.concatenate(halves, axis=1).reshape(B, L, D)
  np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)


def test_all_experts_chosen_without_noise_are_the_dense_softmax_mixture():
  config = moe.MoEConfig(experts=4, top_k=4, hidden=6, task_experts=0, noisy=False)
  params = params_of(config)
  u = U.reshape(-1, D).astype(np.float64)
  weight = softmax(logits_by_hand(params["token"]["gate"], u))
  every = np.tile(np.arange(4), (len(u), 1))
  expected = experts_by_hand(params["token"]["experts"], u, every, weight)
  for way in (None, *moe_dispatch.WAYS):
    y, _ = run(moe.MoEConfig(**vars(config) | {"dispatch": way}), params, key=jax.random.key(0))
    np.testing.assert_allclose(y.reshape(-1, D), expected, rtol=0, atol=1e-4)


def test_permuting_experts_with_their_gate_columns_changes_nothing():
  config = moe.MoEConfig(experts=5, hidden=6, task_experts=0)
  params, order = params_of(config), np.random.default_rng(3).permutation(5)
  half = params["token"]
  turned = half | {
    "gate": half["gate"] | {"w2": half["gate"]["w2"][:, order]},
    "experts": {name: x[order] for name, x in half["experts"].items()},
  }
  np.testing.assert_allclose(
    run(config, {"token": turned})[0], run(config, params)[0], rtol=0, atol=1e-5
  )


def test_evaluation_does_not_depend_on_a_key_and_training_does():
  params = params_of(CONFIG)
  quiet = moe.MoEConfig(**vars(CONFIG) | {"noisy": False})
  still = {name: {k: v for k, v in half.items() if k != "noise"} for name, half in params.items()}
  y, _ = run(CONFIG, params)
  for seed in range(2):
    noisy, seen = run(CONFIG, params, key=jax.random.key(seed))
    z = moe._token_logits(params["token"], U.reshape(-1, D), jax.random.key(seed))[1]
    expert = np.argsort(-np.asarray(z), axis=1)[:, :2]
    np.testing.assert_array_equal(seen.routes["token_expert"].reshape(-1, 2), expert)
    np.testing.assert_array_equal(run(quiet, still, key=jax.random.key(seed))[0], y)
    assert np.any(noisy[..., : D // 2] != y[..., : D // 2])
    np.testing.assert_array_equal(noisy[..., D // 2 :], y[..., D // 2 :])  # the task gate has none


def test_noise_has_the_deviation_that_the_formula_names():
  half = {"gate": params_of(CONFIG)["token"]["gate"], "noise": np.full((D, 5), 0.3, np.float32)}
  u = np.tile(U[:1, :1], (1, 4000, 1)).reshape(-1, D)
  z, noisy, sigma = jit(moe._token_logits)(half, u, jax.random.key(0))
  expected = math.log1p(math.exp(0.3 * float(u[0].sum()))) + 0.01
  np.testing.assert_allclose(sigma, expected, rtol=1e-5)
  assert np.std(noisy - z) == pytest.approx(expected, rel=0.02)
  assert abs(np.mean(noisy - z)) < 4 * expected / math.sqrt(20000)


def test_noise_starts_alike_for_all_experts():
  start = jit(functools.partial(moe.init, CONFIG, D))(jax.random.key(0))["token"]["noise"]
  found = jit(moe_gates.deviation)(start, U[0])
  np.testing.assert_allclose(found, math.log(2) + 0.01, rtol=1e-6)


def test_bias_changes_the_choice_and_no_weight():
  config = moe.MoEConfig(experts=5, hidden=6, task_experts=0)
  params = params_of(config)
  _, seen = run(config, params, bias={"token": np.asarray([-np.inf, 0, 0, 50, 0], np.float32)})
  expert = np.asarray(seen.routes["token_expert"])
  assert not np.any(expert == 0) and np.all(expert[..., 0] == 3)
  z = logits_by_hand(params["token"]["gate"], U.astype(np.float64))
  weight = softmax(np.take_along_axis(z, expert, axis=-1))
  gate = np.take_along_axis(np.asarray(seen.routes["token_gate"]), expert, axis=-1)
  np.testing.assert_allclose(gate, weight, atol=1e-6)


def test_a_constant_on_all_logits_changes_nothing():
  z = np.random.default_rng(4).normal(size=(10, 5)).astype(np.float32)
  a, b = moe_gates.top_experts(z, 2), moe_gates.top_experts(z + 7, 2)
  np.testing.assert_array_equal(a, b)
  np.testing.assert_allclose(moe_gates.weigh(z, a), moe_gates.weigh(z + 7, a), atol=1e-6)


def test_of_equal_logits_the_first_count():
  np.testing.assert_array_equal(moe_gates.top_experts(jnp.zeros((1, 4)), 2), [[0, 1]])


def test_a_whole_layer_split_over_devices_gives_what_one_device_gives():
  config = moe.MoEConfig(experts=8, hidden=6, task_experts=4)
  where = NamedSharding(
    Mesh(np.asarray(jax.devices()).reshape(2, 4), ("data", "tensor")), P("tensor")
  )
  params = params_of(config)
  alone, seen = run(config, params)
  split, seen_split = jit(lambda p, u: moe.apply(config, p, u, act=ACT, where=where))(params, U)
  np.testing.assert_allclose(split, alone, rtol=0, atol=5e-5)
  np.testing.assert_array_equal(seen_split.routes["token_expert"], seen.routes["token_expert"])


# ---- recorded routing ----------------------------------------------------------------------------


def test_replayed_routing_gives_the_same_outputs():
  params, key = params_of(CONFIG), jax.random.key(5)
  y, seen = run(CONFIG, params, key=key)
  again, seen_again = run(CONFIG, params, key=key, routes=seen.routes)
  np.testing.assert_array_equal(again, y)
  np.testing.assert_array_equal(seen_again.routes["token_expert"], seen.routes["token_expert"])


def test_replayed_routing_keeps_the_choice_when_the_parameters_moved_and_has_a_gradient():
  params, moved = params_of(CONFIG), params_of(CONFIG, seed=1)
  _, seen = run(CONFIG, params)
  _, other = run(CONFIG, moved)
  assert np.any(other.routes["token_expert"] != seen.routes["token_expert"])
  _, kept = run(CONFIG, moved, routes=seen.routes)
  np.testing.assert_array_equal(kept.routes["token_expert"], seen.routes["token_expert"])
  np.testing.assert_array_equal(kept.routes["task_expert"], seen.routes["task_expert"])
  loss = lambda p: jnp.sum(moe.apply(CONFIG, p, U, act=ACT, routes=seen.routes)[0] ** 2)
  grads = jit(jax.grad(loss))(moved)
  assert np.any(grads["token"]["gate"]["w1"]) and np.any(grads["task"]["gate"]["w2"])


# ---- balance and contrast ------------------------------------------------------------------------


def test_balance_of_one_favoured_expert_is_that_of_all_mass_there():
  config = moe.MoEConfig(experts=4, top_k=1, hidden=6, task_experts=0)
  bias = {"token": np.asarray([0, 100, 0, 0], np.float32)}
  _, seen = run(config, params_of(config), bias=bias)
  assert float(seen.balance) == pytest.approx(2 * 4, rel=1e-5)  # CV^2 = E of importance and load
  _, noisy = run(config, params_of(config), bias=bias, key=jax.random.key(0))
  assert float(noisy.balance) == pytest.approx(2 * 4, rel=1e-3)


def test_the_task_half_has_no_balance_loss():
  config = moe.MoEConfig(experts=0, hidden=6, task_experts=3)
  y, seen = run(config, params_of(config), key=jax.random.key(0))
  assert float(seen.balance) == 0 and y.shape == (B, L, D)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("use_softmax, skip", [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_representations_equal_numpy(hard, use_softmax, skip):
  config = moe.MoEConfig(
    experts=0, hidden=6, task_experts=3, hard=hard, softmax=use_softmax, skip=skip
  )
  params, slow = params_of(config), params_of(config, seed=1)["task"]["gate"]
  _, seen = run(config, params, key_gate=slow)
  for name, gate in (("q", params["task"]["gate"]), ("k", slow)):
    if hard:
      z = logits_by_hand(gate, U.astype(np.float64).mean(axis=1))
      expected = softmax(z) if use_softmax else z
    else:
      z = logits_by_hand(gate, U.astype(np.float64))
      expected = (softmax(z) if use_softmax else z)[:, skip:].mean(axis=1)
    np.testing.assert_allclose(seen.routes[name], expected, rtol=0, atol=1e-5)


def test_hard_routing_sends_a_sequence_to_one_choice_of_experts():
  config = moe.MoEConfig(experts=0, hidden=6, task_experts=6, hard=True)
  params = params_of(config)
  _, seen = run(config, params)
  z = logits_by_hand(params["task"]["gate"], U.astype(np.float64).mean(axis=1))
  expected = np.argsort(-z, axis=1)[:, :2]
  np.testing.assert_array_equal(seen.routes["task_expert"], np.repeat(expected[:, None], L, 1))
  assert len({tuple(row) for row in expected}) > 1
  mean = np.random.default_rng(6).normal(size=(B, D)).astype(np.float32)
  _, given = run(config, params, pooled=mean)
  by_mean = np.argsort(-logits_by_hand(params["task"]["gate"], mean.astype(np.float64)), axis=1)
  np.testing.assert_array_equal(given.routes["task_expert"][:, 0], by_mean[:, :2])


def whole(seed=0):
  """Parameters of a model with one layer with experts, as T2MIR's `settle` finds them."""
  layer = {"moe": params_of(CONFIG, seed)}
  return {"layers": {"0": layer}, "key_gate": {"0": params_of(CONFIG, 9)["task"]["gate"]}}


def test_key_gate_has_no_gradient_and_the_task_gate_has():
  def loss(params):
    u = jnp.asarray(U) * params["scale"]
    half, slow = params["layers"]["0"]["moe"], params["key_gate"]["0"]
    y, seen = moe.apply(CONFIG, half, u, act=ACT, key_gate=slow)
    r = seen.routes
    return jnp.sum(y**2) + contrastive.info_nce(r["q"], r["k"], r["contrast"])

  grads = jit(jax.grad(loss))(whole() | {"scale": jnp.float32(1)})
  assert not any(np.any(g) for g in jax.tree.leaves(grads["key_gate"]))
  assert all(np.any(g) for g in jax.tree.leaves(grads["layers"]["0"]["moe"]["task"]))


def test_k_has_no_gradient_at_all():
  def k(slow, params, u):
    return jnp.sum(moe.apply(CONFIG, params, u, act=ACT, key_gate=slow)[1].routes["k"] ** 2)

  grads = jit(jax.grad(k, argnums=(0, 1, 2)))(whole()["key_gate"]["0"], params_of(CONFIG), U)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_key_gate_follows_the_task_gate_by_the_closed_form():
  tau, steps, params = 0.1, 5, whole()
  settle = methods.get("t2mir", gate_rate=tau).settle
  fast = params["layers"]["0"]["moe"]["task"]["gate"]
  first = params["key_gate"]["0"]
  for _ in range(steps):  # theta fixed: theta' = (1 - tau)^n theta'_0 + (1 - (1 - tau)^n) theta
    params = settle(params, params)
  left = (1 - tau) ** steps
  for name in ("w1", "w2"):
    expected = left * first[name] + (1 - left) * fast[name]
    np.testing.assert_allclose(params["key_gate"]["0"][name], expected, rtol=0, atol=1e-5)
  assert params["layers"]["0"]["moe"]["task"]["gate"] is fast


def test_key_gate_of_moving_parameters_is_their_weighted_sum():
  tau, params, start = 0.25, whole(), whole()["key_gate"]["0"]["w1"]
  expected = (1 - tau) ** 3 * start
  for n, seed in enumerate((1, 2, 3)):
    fast = params_of(CONFIG, seed)
    moved = {"layers": {"0": {"moe": fast}}, "key_gate": {"0": "what an optimizer made of it"}}
    params = methods.get("t2mir", gate_rate=tau).settle(moved, params)
    expected = expected + tau * (1 - tau) ** (2 - n) * fast["task"]["gate"]["w1"]
  np.testing.assert_allclose(params["key_gate"]["0"]["w1"], expected, rtol=0, atol=1e-5)


def test_key_gates_start_as_copies_and_models_without_them_pass_through():
  layers = {"0": {"moe": params_of(CONFIG)}, "1": {"up": np.zeros(3)}}
  gates = moe.init_key_gates(layers)
  assert set(gates) == {"0"}
  np.testing.assert_array_equal(gates["0"]["w1"], layers["0"]["moe"]["task"]["gate"]["w1"])
  assert methods.get("t2mir").settle({"layers": {}}, {}) == {"layers": {}}


# ---- sizes ---------------------------------------------------------------------------------------


def test_dense_layer_of_equal_active_weights():
  full = moe.MoEConfig(experts=6, hidden=128, task_experts=12)
  dense = moe.dense_of(full, 64)
  assert (dense.experts, dense.top_k, dense.task_experts, dense.hidden) == (1, 1, 0, 384)
  alone = moe.dense_of(moe.MoEConfig(experts=6, hidden=128, task_experts=0), 64)
  assert alone.hidden == 256


def test_one_expert_is_a_dense_layer():
  config = moe.dense_of(CONFIG, D)
  params = params_of(config)
  y, seen = run(config, params, key=jax.random.key(0))
  p = {name: np.asarray(x[0], np.float64) for name, x in params["token"]["experts"].items()}
  expected = np.tanh(U @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]
  np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)
  assert float(seen.balance) == 0


@pytest.mark.parametrize(
  "change, field",
  [
    ({"experts": 0, "task_experts": 0}, "moe.experts"),
    ({"experts": 1}, "moe.experts"),
    ({"task_experts": -1}, "moe.task_experts"),
    ({"top_k": 0}, "moe.top_k"),
    ({"hidden": 0}, "moe.hidden"),
    ({"dispatch": "capacity"}, "moe.dispatch"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(change, field):
  with pytest.raises(UserError, match=f"^{field}"):
    moe.MoEConfig(**({"experts": 4} | change))


def test_an_odd_width_cannot_be_halved():
  with pytest.raises(UserError, match="^hidden=7"):
    moe.init(CONFIG, 7, jax.random.key(0))
