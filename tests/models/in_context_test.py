"""The in-context transformer against float64 numpy loops, and its cache against itself."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wide import wide

from grpo_jax.errors import UserError
from grpo_jax.models.in_context import attention
from grpo_jax.models.in_context import transformer as model
from grpo_jax.models.moe.layer import MoEConfig

BASE = {"inputs": 5, "outputs": 4, "positions": 12, "hidden": 8, "layers": 2}
DPT = model.InContextConfig(**BASE)
AD = model.InContextConfig(
  **BASE, heads=2, modalities=(5, 3, 1), embed_hidden=6, activation="leaky_relu",
  attention_norm=True, sinusoidal=True,
)  # fmt: skip
T2MIR = model.InContextConfig(
  **BASE, heads=4, modalities=(5, 3, 1), lead=1,
  moe=MoEConfig(experts=4, top_k=2, hidden=6, task_experts=3, skip=1), moe_layers=(0, 1),
)  # fmt: skip
HARD = model.InContextConfig(**BASE, moe=MoEConfig(experts=3, hidden=6, task_experts=4, hard=True))
CONFIGS = {"dpt": DPT, "ad": AD, "t2mir": T2MIR, "hard": HARD}
X = np.random.default_rng(0).normal(size=(3, 8, 5)).astype(np.float32)
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@functools.cache
def params_of(config, seed=0):
  """Random parameters at which every part matters; at the start biases are 0 and layers weak."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))

  def scramble(path, x):
    near = 1 if path[-1].key == "scale" else 0
    return (near + 0.3 * rng.normal(size=x.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(scramble, shapes)


# Half the time to compile; these arrays are small.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnums=0)
def extend(config, params, cache, x, position=None):
  return model.extend(config, params, cache, x, position=position)


@functools.partial(jit, static_argnums=0, static_argnames="last")
def outputs(config, params, x, position=None, last=False):
  return model.apply(config, params, x, position=position, last=last).outputs


# ---- the specification ---------------------------------------------------------------------------


def by_hand(config, params, x, position):
  """Outputs of one sequence x [L, inputs], a token and a head at a time."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  d, size = config.hidden // config.heads, len(x)
  h = np.stack([embed(config, p, x[t], t, position[t]) for t in range(size)])
  for i in range(config.layers):
    w = p["layers"][str(i)]
    q, k, v = np.split(norm(h, w["norm1"]) @ w["qkv"] + w["qkv_bias"], 3, axis=1)
    mixed = np.zeros_like(h)
    for head in range(config.heads):
      here = slice(head * d, (head + 1) * d)
      for t in range(size):
        score = np.exp(k[: t + 1, here] @ q[t, here] / math.sqrt(d))
        mixed[t, here] = score @ v[: t + 1, here] / score.sum()
    added = mixed @ w["proj"] + w["proj_bias"]
    h = h + (norm(added, w["attention_norm"]) if config.attention_norm else added)
    u = norm(h, w["norm2"])
    h = h + act(config, u @ w["up"] + w["up_bias"]) @ w["down"] + w["down_bias"]
  return norm(h, p["norm"]) @ p["head"]["w"] + p["head"]["b"]


def embed(config, p, x, t, position):
  if config.modalities:
    kind = 0 if t < config.lead else (t - config.lead) % len(config.modalities)
    x, w = x[: config.modalities[kind]], p["embed"][str(kind)]
  else:
    w = p["embed"]
  h = x @ w["w"] + w["b"]
  if config.embed_hidden:
    h = act(config, h) @ w["w2"] + w["b2"]
  if not config.sinusoidal:
    return h + p["position"][position]
  angle = [position / 10000 ** (2 * (j // 2) / config.hidden) for j in range(config.hidden)]
  return h + [math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angle)]


def norm(x, w):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w["scale"] + w["bias"]


def act(config, x):
  if config.activation == "leaky_relu":
    return np.where(x > 0, x, 0.01 * x)
  return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
  "config", [DPT, AD, dataclasses.replace(AD, lead=2)], ids=["dpt", "ad", "lead"]
)
@pytest.mark.parametrize("position", [None, np.asarray([3, 0, 1, 1, 7, 2, 5, 6])])
def test_outputs_equal_numpy_loops(config, position):
  params = params_of(config)
  found = outputs(config, params, X, position)
  where = np.arange(8) if position is None else position
  expected = np.stack([by_hand(config, params, x, where) for x in X.astype(np.float64)])
  np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)


def test_positions_may_differ_by_row():
  position = np.asarray([[0, 1, 2, 3, 4, 5, 6, 7], [4, 4, 4, 5, 5, 5, 0, 0], [9] * 8])
  found = outputs(DPT, params_of(DPT), X, position)
  for row in range(3):
    one = outputs(DPT, params_of(DPT), X[row : row + 1], position[row])
    np.testing.assert_allclose(found[row], one[0], rtol=0, atol=1e-5)


# ---- attention -----------------------------------------------------------------------------------


def plain(q, k, v):
  score = np.asarray(q, np.float64) @ np.asarray(k, np.float64).transpose(0, 2, 1)
  weight = np.exp(score / math.sqrt(q.shape[-1])) * np.tri(q.shape[1])
  return weight / weight.sum(-1, keepdims=True) @ np.asarray(v, np.float64)


def arrays(rows, size, width=4):
  return np.random.default_rng(1).normal(size=(4, rows, size, width)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
  """Several blocks of queries, a short one last, and two rows at a time."""
  monkeypatch.setattr(attention, "_BLOCK", 4)
  monkeypatch.setattr(attention, "_SCORES", 100)


def test_attention_by_blocks_equals_numpy(small_blocks):
  q, k, v, _ = arrays(6, 11)
  np.testing.assert_allclose(jit(attention.causal)(q, k, v), plain(q, k, v), rtol=0, atol=1e-6)


def test_gradient_of_attention_equals_differences(small_blocks):
  with wide():
    q, k, v, ct = arrays(6, 11).astype(np.float64)
    direction = np.random.default_rng(2).normal(size=(3, *q.shape))
    grads = jit(lambda ct, *x: jax.vjp(attention.causal, *x)[1](ct))(ct, q, k, v)
    for i in range(3):
      moved = [
        [x + sign * 1e-5 * direction[i] * (i == j) for j, x in enumerate((q, k, v))]
        for sign in (1, -1)
      ]
      up, down = (np.sum(ct * plain(*x)) for x in moved)
      assert np.sum(np.asarray(grads[i]) * direction[i]) == pytest.approx(
        (up - down) / 2e-5, rel=1e-7
      )


def test_attention_of_many_rows_equals_that_of_each(small_blocks):
  x = arrays(6, 11)
  found = jit(jax.vmap(attention.causal))(*(x[i].reshape(2, 3, 11, 4) for i in range(3)))
  np.testing.assert_allclose(found.reshape(6, 11, 4), plain(*x[:3]), rtol=0, atol=1e-6)


def test_large_scores_neither_overflow_nor_lose_the_gradient():
  q, k, v, _ = arrays(1, 5) * np.asarray([[[[300.0]]], [[[300.0]]], [[[1.0]]], [[[1.0]]]])
  q, k, v = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
  grads = jit(jax.grad(lambda v: jnp.sum(attention.causal(q, k, v))))(v)
  assert float(jnp.sum(grads)) == pytest.approx(20, rel=1e-5)  # the weights of a query sum to 1


# ---- what follows from the specification ---------------------------------------------------------


@pytest.mark.parametrize("name", ["dpt", "ad", "t2mir"])
def test_no_output_depends_on_what_follows(name):
  config = CONFIGS[name]
  before = outputs(config, params_of(config), X)
  changed = X.copy()
  changed[:, 5] += 1.0
  after = outputs(config, params_of(config), changed)
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert np.all(np.abs(before[:, 5] - after[:, 5]) > 1e-4)


def test_hard_routing_looks_ahead_as_the_paper_has_it():
  before = outputs(HARD, params_of(HARD), X)
  changed = X.copy()
  changed[:, 7] += 3.0
  after = outputs(HARD, params_of(HARD), changed)
  assert np.any(np.abs(before[:, 0] - after[:, 0]) > 1e-4)


@every
def test_the_last_output_alone_is_the_last_of_all(config):
  whole = outputs(config, params_of(config), X)
  np.testing.assert_allclose(
    outputs(config, params_of(config), X, last=True), whole[:, -1:], rtol=0, atol=1e-5
  )


@pytest.mark.parametrize("cuts", [(1,) * 8, (3, 1, 4), (8,)], ids=["singly", "mixed", "at once"])
@pytest.mark.parametrize("name", ["dpt", "ad", "t2mir"])
def test_cache_gives_what_apply_gives_at_every_token(name, cuts):
  config = CONFIGS[name]
  params, cache = params_of(config), model.open_cache(config, 3, 8)
  found, start = [], 0
  for cut in cuts:
    part, cache = extend(config, params, cache, X[:, start : start + cut])
    found.append(part)
    start += cut
  assert int(cache.length) == 8
  np.testing.assert_allclose(
    np.concatenate(found, axis=1), outputs(config, params, X), rtol=0, atol=1e-5
  )


def test_cache_with_hard_routing_gives_the_end_of_every_prefix():
  cache = model.open_cache(HARD, 3, 8)
  start = 0
  for cut in (1, 3, 1, 2):
    found, cache = extend(HARD, params_of(HARD), cache, X[:, start : start + cut])
    start += cut
    expected = outputs(HARD, params_of(HARD), X[:, :start])[:, -cut:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_cache_may_grow_and_take_positions():
  position = np.asarray([5, 5, 1, 2, 0, 3, 4, 9])
  cache = model.open_cache(DPT, 3, 3)
  first, cache = extend(DPT, params_of(DPT), cache, X[:, :3], position[:3])
  cache = model.grow(cache, 8)
  second, _ = extend(DPT, params_of(DPT), cache, X[:, 3:], position[3:])
  found = np.concatenate([first, second], axis=1)
  expected = outputs(DPT, params_of(DPT), X, position)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_seeds_may_be_vmapped_with_their_gradients():
  def value(params, key):
    def loss(params):
      out = model.apply(T2MIR, params, X, key=key)
      return jnp.sum(out.outputs**2) + out.aux["balance"]

    return jax.value_and_grad(loss)(params)

  params = [params_of(T2MIR, seed) for seed in range(2)]
  keys = jax.random.split(jax.random.key(0), 2)
  together = jit(jax.vmap(value))(jax.tree.map(lambda *x: np.stack(x), *params), keys)
  single = jit(value)
  for i in range(2):
    alone = single(params[i], keys[i])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
      np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


def test_every_parameter_that_can_learn_has_a_gradient():
  for config in (AD, T2MIR):

    def loss(params, config=config):
      out = model.apply(config, params, X, key=jax.random.key(0))
      score = jnp.sum(out.outputs**3) + sum(out.aux.values())
      return score + (jnp.sum(out.routes["q"] ** 2) if config.moe else 0)

    grads = jit(jax.grad(loss))(params_of(config))
    still = {
      jax.tree_util.keystr(path)
      for path, g in jax.tree_util.tree_leaves_with_path(grads)
      if not np.any(g)
    }
    assert all("key_gate" in name or "contrast" in name for name in still)


def test_a_model_without_experts_is_a_plain_tree_of_arrays():
  params = params_of(DPT)
  assert "key_gate" not in params
  assert jax.eval_shape(functools.partial(model.apply, DPT), params, X).aux == {}
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.float32.dtype}


def test_the_start_has_the_scales_it_names():
  config = model.InContextConfig(inputs=64, outputs=5, positions=200, hidden=128, layers=2)
  params = jit(functools.partial(model.init, config))(jax.random.key(0))
  layer = params["layers"]["1"]
  for array, std in (
    (params["position"], 0.02), (layer["qkv"], 0.02), (layer["up"], 0.02),
    (layer["proj"], 0.01), (layer["down"], 0.01), (params["embed"]["w"], 1 / math.sqrt(3 * 64)),
    (params["head"]["w"], 1 / math.sqrt(3 * 128)),
  ):  # fmt: skip
    assert np.std(array) == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize(
  "change, field",
  [
    ({"hidden": 9, "heads": 2}, "hidden"),
    ({"layers": 0}, "layers"),
    ({"activation": "relu"}, "activation"),
    ({"modalities": (3, 1)}, "inputs"),
    ({"hidden": 7, "sinusoidal": True}, "hidden"),
    ({"moe": MoEConfig(), "moe_layers": (2,)}, "moe_layers"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(change, field):
  with pytest.raises(UserError, match=f"^{field}"):
    model.InContextConfig(**(BASE | change))


def test_a_sequence_longer_than_the_table_is_refused():
  with pytest.raises(UserError, match="^positions=12: the sequence has 13"):
    model.apply(DPT, params_of(DPT), np.zeros((1, 13, 5), np.float32))
