"""Group advantages and scans: every form against loops in numpy, and against grpo_jax.core."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from grpo_jax.core import groups, returns
from pallas_kernels import group_advantage as op
from pallas_kernels.group_advantage import cases, gpu, tpu, xla

FORMS = ("reference", "xla", "tpu_interpret", "gpu_interpret")
forms = pytest.mark.parametrize("name", FORMS)
WAYS = (("standardize", "group"), ("standardize", "batch"), ("standardize", "none"),
        ("leave_one_out", "group"), ("ranks", "group"), ("minmax", "group"),
        ("whiten", "group"))  # fmt: skip
ways = pytest.mark.parametrize("kind, scale", WAYS)
few = settings(max_examples=5, deadline=None)
KERNELS = ("tpu_interpret", "gpu_interpret")
SMALL = {  # several blocks each way; and what XLA does off the CPU
  "xla": xla.sweeps,
  "tpu_interpret": functools.partial(tpu.backward_scan, blocks=tpu.Blocks(8, 128), interpret=True),
  "gpu_interpret": functools.partial(gpu.backward_scan, blocks=gpu.Blocks(4, 64), interpret=True),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  for name, form in SMALL.items():
    monkeypatch.setitem(op.SCANS, name, form)


def supported(name, kind):
  return None if kind == "whiten" and "interpret" in name else name


def draw(n, g, seed=0):
  """Rewards with ties; group 0 constant, 1 empty, 2 of one; NaN and inf where not alive."""
  rng = np.random.default_rng(seed)
  reward = rng.integers(0, 4, (n, g)) + rng.integers(0, 2, (n, 1)) * rng.random((n, g))
  alive = rng.random((n, g)) < 0.8
  reward[0], alive[1], alive[2] = 0.7, False, np.arange(g) == 1
  reward = reward.astype(np.float32)
  reward[~alive] = rng.choice([np.nan, np.inf], (~alive).sum())
  return reward, alive


def one_group(r, kind, deviation, scale, eps):
  k = len(r)
  if kind == "leave_one_out":
    return [x - np.delete(r, j).mean() for j, x in enumerate(r)]
  if kind == "ranks":
    return [((r < x).sum() - (r > x).sum()) / (k - 1) for x in r]
  if kind == "minmax":
    return (r - r.mean()) / (r.max() - r.min() + eps)
  return (r - r.mean()) / (1 if scale == "none" else deviation + eps)


def oracle(reward, alive, kind, scale, ddof=1, eps=1e-4):
  """One group at a time, in float64."""
  out = np.zeros(reward.shape)
  everything = reward[alive].astype(np.float64)
  deviation = lambda x: x.std() * (len(x) / max(len(x) - ddof, 1)) ** 0.5
  for i, on in enumerate(alive):
    r = reward[i, on].astype(np.float64)
    if kind == "whiten":
      out[i, on] = (r - everything.mean()) / (deviation(everything) + eps)
    elif len(r) > 1 and r.max() > r.min():
      out[i, on] = one_group(r, kind, deviation(everything if scale == "batch" else r), scale, eps)
  return out


@functools.cache
def compiled(name, kind, scale, ddof=1, groups=None):
  options = {"kind": kind, "scale": scale, "ddof": ddof, "eps": 1e-4, "implementation": name}
  if groups is None:
    return jax.jit(functools.partial(op.group_advantage, **options))
  return jax.jit(functools.partial(op.ragged_advantage, num_groups=groups, **options))


@forms
@ways
def test_advantages_equal_loops_whatever_the_dead_hold(name, kind, scale):
  if not supported(name, kind):
    with pytest.raises(NotImplementedError, match="left to XLA"):
      compiled(name, kind, scale)(*draw(9, 16))
    return
  f = compiled(name, kind, scale)

  @few
  @given(seed=st.integers(0, 2**20))
  def check(seed):
    reward, alive = draw(9, 16, seed)
    found = np.asarray(f(reward, alive))
    np.testing.assert_allclose(found, oracle(reward, alive, kind, scale), rtol=2e-5, atol=3e-6)
    assert found.dtype == np.float32 and not found[~alive].any()
    if kind != "whiten":
      assert not found[:3].any()  # constant, empty, one: exactly 0

  check()


@forms
@pytest.mark.parametrize("kind, scale", [w for w in WAYS if w[1] == "batch" or w[0] in (
  "standardize", "ranks", "whiten")])  # fmt: skip
def test_ragged_groups_in_any_order_equal_loops(name, kind, scale):
  if not supported(name, kind):
    return
  f = compiled(name, kind, scale, groups=6)

  @few
  @given(seed=st.integers(0, 2**20))
  def check(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, 8, 45).astype(np.int32)  # 6 and 7 are not groups
    ids[ids == 2] = 3
    reward = rng.integers(0, 5, 45).astype(np.float32) * rng.random()
    reward[ids == 4] = 0.3
    member = ids[None] == np.arange(6)[:, None]
    reward[~member.any(0)] = np.nan
    rows = oracle(np.tile(reward, (6, 1)), member, kind, scale) if kind != "whiten" else None
    flat = oracle(reward[None], member.any(0)[None], kind, scale) if rows is None else rows
    found = np.asarray(f(reward, ids))
    np.testing.assert_allclose(found, flat.sum(0), rtol=2e-5, atol=3e-6)
    assert kind == "whiten" or not found[ids == 4].any()

  check()


@forms
def test_definitions_agree_with_core_groups(name):
  reward, alive = map(jnp.asarray, draw(9, 16, seed=3))
  for kind, scale, ddof, theirs in (
    ("standardize", "group", 1, groups.standardize(reward, alive)),
    ("standardize", "group", 0, groups.standardize(reward, alive, ddof=0)),
    ("standardize", "batch", 1, groups.standardize(reward, alive, scale="batch")),
    ("standardize", "none", 1, groups.center(reward, alive)),
    ("leave_one_out", "group", 1, groups.leave_one_out(reward, alive)),
    ("whiten", "group", 1, groups.whiten(reward, alive, eps=1e-4)),
  ):
    if supported(name, kind):
      found = compiled(name, kind, scale, ddof)(reward, alive)
      np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-6, err_msg=kind)
  assert set(op.SCALES) == set(groups.SCALES)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("case", cases.GROUPS, ids=lambda c: c.name)
def test_kernels_take_the_shapes_of_real_runs(name, case):
  small = case.small()
  reward, alive = draw(small.prompts, small.size, seed=4)
  expected = oracle(reward, alive, "standardize", "group")
  found = compiled(name, "standardize", "group")(reward, alive)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=3e-6)


@pytest.mark.parametrize("name", ["xla", "tpu_interpret"])
def test_advantages_have_no_gradient(name):
  reward, alive = jnp.arange(8.0).reshape(2, 4), jnp.ones((2, 4), bool)
  for f in (
    lambda r: op.group_advantage(r, alive, implementation=name),
    lambda r: op.discounted(r, jnp.ones((2, 4)), 0.9, implementation=name),
  ):
    total = lambda r, f=f: jnp.sum(f(r) ** 2)
    assert not jax.jit(jax.grad(total))(reward).any() and total(reward) > 0


# ---- scans --------------------------------------------------------------------------------------


def rows(r, t, seed):
  """(reward, value, mask, segment, truncated): NaN and inf off the mask."""
  rng = np.random.default_rng(seed)
  reward, value, beyond = rng.normal(size=(3, r, t)).astype(np.float32)
  mask = (rng.random((r, t)) < rng.choice([0.2, 0.8, 1.0], (r, 1))).astype(np.float32)
  segment = np.sort(rng.integers(0, 5, (r, t)), axis=1).astype(np.int32)
  truncated = rng.random((r, 5))[np.arange(r)[:, None], segment] < 0.5
  for x in (reward, value, beyond):
    x[mask == 0] = rng.choice([np.nan, np.inf], int((mask == 0).sum()))
  return reward, value, mask, segment, truncated, beyond


def loop(reward, mask, decay, value=None, last=None, gamma=None, segment=None):
  """Token by token over lists, in float64. decay, gamma: [R, 1] or [R, T]."""
  out = np.zeros(reward.shape)
  for i in range(len(reward)):
    after = None
    for t in reversed(np.flatnonzero(mask[i])):
      linked = after is not None and (segment is None or segment[i, t] == segment[i, after])
      at = lambda x, i=i, t=t: float(x[i, t if x.shape[1] > 1 else 0])
      delta = float(reward[i, t])
      if value is not None:
        beyond = 0.0 if last is None else float(last[i, t])
        delta += at(gamma) * (float(value[i, after]) if linked else beyond) - float(value[i, t])
      out[i, t] = delta + at(decay) * (out[i, after] if linked else 0.0)
      after = t
  return out


@functools.cache
def scans(name):
  def run(reward, value, mask, segment, truncated, beyond, gamma, lam):
    named = {"implementation": name}
    both = {"gamma": gamma, "lam": lam, **named}
    return (
      op.discounted(reward, mask, gamma, **named),
      op.discounted(reward, mask, jnp.abs(jnp.sin(beyond)), segment, **named),
      *op.gae(reward, value, mask, **both),
      op.gae(reward, value, mask, segment=segment, **both)[0],
      op.egae(reward, value, mask, truncated, segment=segment, **both)[0],
      op.egae(reward, value, mask, truncated[:, 0], bootstrap=beyond[:, 0], **both)[0],
    )

  return jax.jit(run)


@forms
@pytest.mark.parametrize("seed", [0, 1])
def test_scans_equal_loops_whatever_is_off_the_mask(name, seed):
  reward, value, mask, segment, truncated, beyond = data = rows(9, 300, seed)
  beyond[:, 0] = 1.5
  gamma, lam = 0.97, np.linspace(0.5, 1, 9).astype(np.float32)
  found = scans(name)(*data, gamma, lam)
  g, d = np.full((len(reward), 1), gamma), gamma * lam[:, None].astype(np.float64)
  with np.errstate(invalid="ignore"):
    each = np.abs(np.sin(beyond.astype(np.float64)))
  own = np.where(truncated, value, 0)
  given = np.where(truncated[:, :1], beyond[:, :1], 0) * np.ones_like(mask)
  plain = loop(reward, mask, d, value, None, g)
  expected = (
    loop(reward, mask, g),
    loop(reward, mask, each, segment=segment),
    plain,
    np.where(mask > 0, plain + value, 0),
    loop(reward, mask, d, value, None, g, segment),
    loop(reward, mask, d, value, own, g, segment),
    loop(reward, mask, d, value, given, g),
  )
  for i, (a, b) in enumerate(zip(found, expected, strict=True)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5, err_msg=str(i))
    assert a.dtype == np.float32 and not np.asarray(a)[mask == 0].any()


@forms
def test_scans_agree_with_core_returns(name):
  reward, value, mask, segment, truncated, beyond = data = rows(9, 300, 2)
  found = scans(name)(*data, 0.97, np.full(9, 0.9, np.float32))
  core = functools.partial(returns.gae, reward, value, mask, gamma=0.97, lam=0.9)
  each = np.abs(np.sin(np.where(mask > 0, beyond, 0)))
  expected = (
    returns.discounted(reward, mask, 0.97),
    returns.discounted(reward, mask, each, segment),
    *core(),
    core(segment=segment)[0],
  )
  for a, b in zip(found, expected, strict=False):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("case", cases.ROWS[1:], ids=lambda c: c.name)
def test_scans_take_the_shapes_of_real_runs(name, case):
  small = case.small()
  reward, value, mask, segment, *_ = rows(small.rows, small.tokens, 3)
  segment = segment if case.packed else None
  both = {"gamma": 1.0, "lam": 0.95, "segment": segment}
  f = jax.jit(lambda *a: op.gae(*a, implementation=name, **both)[0])
  np.testing.assert_allclose(
    f(reward, value, mask), returns.gae(reward, value, mask, **both)[0], rtol=1e-5, atol=5e-5
  )


@forms
def test_egae_of_a_truncated_row_is_what_the_paper_says(name):
  """gamma = 1, no reward: the last token gets 0; with lambda = 1 the others V(last) - V(t)."""
  _, value, *_ = rows(3, 20, 2)
  value = np.where(np.isfinite(value), value, 0.3)
  zero, mask = np.zeros_like(value), np.ones_like(value)
  mask[1, 15:] = 0
  ends = np.arange(3), np.asarray([19, 14, 19])
  f = jax.jit(
    lambda lam: op.egae(zero, value, mask, np.ones(3, bool), gamma=1.0, lam=lam,
                        implementation=name)[0]
  )  # fmt: skip
  adv = np.asarray(f(0.8))
  assert not adv[ends].any() and np.abs(adv[:, 3]).min() > 1e-3
  last = value[ends][:, None]
  np.testing.assert_allclose(f(1.0), np.where(mask > 0, last - value, 0), rtol=0, atol=1e-5)


# ---- choice of the implementation ---------------------------------------------------------------


def test_scans_and_groups_run_inside_shard_map_over_rows():
  mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  split = functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False
  )
  reward, alive = draw(16, 8)
  f = functools.partial(op.group_advantage, implementation="tpu_interpret")
  found = jax.jit(split(f))(reward, alive)
  np.testing.assert_allclose(found, op.group_advantage(reward, alive), rtol=0, atol=1e-6)
  reward, _, mask, *_ = rows(8, 30, 5)
  f = lambda r, m: op.discounted(r, m, 0.9, implementation="tpu_interpret")
  found = jax.jit(split(f))(reward, mask)
  np.testing.assert_allclose(found, op.discounted(reward, mask, 0.9), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
def test_a_refusal_moves_on_to_xla(monkeypatch, backend):
  reward, alive = draw(3, 2000)
  expected = op.group_advantage(reward, alive)
  white = op.group_advantage(reward, alive, kind="whiten")
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  np.testing.assert_array_equal(op.group_advantage(reward, alive), expected)
  np.testing.assert_array_equal(op.group_advantage(reward, alive, kind="whiten"), white)
  with pytest.raises(NotImplementedError, match="groups of 2000"):
    op.group_advantage(reward, alive, implementation=backend)


def test_bad_arguments_are_refused_by_name():
  reward, alive = draw(3, 4)
  for bad, message in (
    ({"kind": "median"}, "kind='median'.*minmax"),
    ({"scale": "std"}, "scale='std'.*batch"),
    ({"implementation": "cuda"}, "implementation='cuda'"),
  ):
    with pytest.raises(ValueError, match=message):
      op.group_advantage(reward, alive, **bad)
  for make, message in (
    (lambda: tpu.Blocks(rows=12), "rows=12.*multiple of 8"),
    (lambda: tpu.Blocks(columns=192), "columns=192.*power of two"),
    (lambda: gpu.Blocks(rows=3), "rows=3.*power of two"),
    (lambda: gpu.Blocks(warps=3), "warps=3"),
  ):
    with pytest.raises(ValueError, match=message):
      make()
