"""Exact inverse-CDF sampling, and the truncations, against numpy in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grpo_jax.rollout import choose
from grpo_jax.rollout.choose import Choice

inverse_cdf = jax.jit(choose.inverse_cdf)
truncate = jax.jit(choose.truncate, static_argnums=(1, 2))
few = settings(max_examples=25, deadline=None)
NEXT_TO_ONE = np.nextafter(np.float32(1), np.float32(0))
# The largest below 1 lies beyond what jax.random.uniform returns.
EDGES = np.asarray([0.0, 1e-38, 1e-7, 0.5, 1 - 1e-6, NEXT_TO_ONE], np.float32)


def softmax(z):
  p = np.exp(z - z.max(axis=-1, keepdims=True))
  return p / p.sum(axis=-1, keepdims=True)


def frequencies(z, points, f=inverse_cdf):
  """How often each token is chosen over the grid (i + 1/2) / points of uniform numbers."""
  z = jnp.asarray(z, jnp.float32)
  counts = np.zeros(z.size)
  grid = (np.arange(points) + 0.5) / points
  for uniform in np.split(grid.astype(np.float32), 8):
    rows = jnp.broadcast_to(z[None], (uniform.size, z.size))
    counts += np.bincount(np.asarray(f(rows, uniform)), minlength=z.size)
  return counts / points


@pytest.mark.parametrize("v", [5, 128, 130, 300])
@pytest.mark.parametrize("scale", [0.0, 2.0, 12.0])
def test_frequencies_over_a_fine_grid_equal_the_softmax(v, scale):
  """An interval of length p holds p * points grid points, one more or less at its ends; the ends
  themselves are sums in float32."""
  z = np.random.default_rng(v).normal(size=v) * scale
  points = 2**16
  found = frequencies(z, points)
  np.testing.assert_allclose(found, softmax(z), rtol=0, atol=1.01 / points + 2e-6)
  chi_square = points * np.sum((found - softmax(z)) ** 2 / softmax(z).clip(1 / points))
  assert chi_square < v / 4  # independent draws would give about v


def test_a_fine_grid_around_each_token_finds_its_ends_to_one_in_a_million():
  z = np.random.default_rng(0).normal(size=150) * 2
  ends = np.cumsum(softmax(z))[:-1]
  rows = jnp.broadcast_to(jnp.asarray(z, jnp.float32)[None], (149, 150))
  below = inverse_cdf(rows, jnp.asarray(ends - 1e-6, jnp.float32))
  above = inverse_cdf(rows, jnp.asarray(ends + 1e-6, jnp.float32))
  np.testing.assert_array_equal(below, np.arange(149))
  np.testing.assert_array_equal(above, np.arange(1, 150))


@few
@given(
  seed=st.integers(0, 2**20),
  v=st.sampled_from([1, 3, 127, 128, 129, 256, 300]),
  allowed=st.integers(1, 6),
  scale=st.sampled_from([1.0, 30.0, 1000.0]),
)
@example(seed=641671, v=256, allowed=2, scale=30.0)  # the sum before a block, rounded up, > uniform
def test_a_token_without_probability_is_never_chosen(seed, v, allowed, scale):
  """-inf logits anywhere, whole blocks of them too, and logits whose exponential underflows."""
  rng = np.random.default_rng(seed)
  z = np.full(v, -np.inf, np.float32)
  places = rng.choice(v, min(allowed, v), replace=False)
  z[places] = rng.normal(size=len(places)) * scale
  uniform = np.concatenate([EDGES, rng.uniform(size=10).astype(np.float32)])
  token = np.asarray(inverse_cdf(jnp.broadcast_to(z[None], (16, v)), uniform))
  assert np.all((token >= 0) & (token < v))
  assert np.all(softmax(z)[token] > 0)


@pytest.mark.parametrize("v", [3, 129, 300])
def test_zero_takes_the_first_and_nearly_one_the_last_possible_token(v):
  z = np.zeros((1, v), np.float32)
  z[0, 0] = z[0, -1] = -np.inf
  assert inverse_cdf(z, jnp.asarray([0.0]))[0] == 1
  assert inverse_cdf(z, jnp.asarray([NEXT_TO_ONE]))[0] == v - 2


def test_a_constant_added_to_the_logits_changes_nothing():
  z = np.random.default_rng(1).integers(-8, 8, (64, 140)).astype(np.float32)
  uniform = np.random.default_rng(2).uniform(size=64).astype(np.float32)
  np.testing.assert_array_equal(inverse_cdf(z, uniform), inverse_cdf(z + 512, uniform))


def test_rows_do_not_depend_on_each_other():
  z = np.random.default_rng(3).normal(size=(7, 200)).astype(np.float32)
  uniform = np.random.default_rng(4).uniform(size=7).astype(np.float32)
  whole = inverse_cdf(z, uniform)
  alone = [int(inverse_cdf(z[i : i + 1], uniform[i : i + 1])[0]) for i in range(7)]
  np.testing.assert_array_equal(whole, alone)


# ---- truncation ---------------------------------------------------------------------------------


def allowed_set(z, top_k, top_p):
  """Definition: the k largest, then the smallest set of the likeliest of these that has mass
  top_p under the distribution over these; ties with the last one of a set are in the set."""
  order = np.argsort(-z, kind="stable")
  if top_k:
    order = [i for i in order if z[i] >= z[order[min(top_k, len(z)) - 1]]]
  if top_p < 1:
    p = softmax(z[order])
    count = next(i for i in range(1, len(order) + 1) if p[:i].sum() >= top_p or i == len(order))
    order = [i for i in order if z[i] >= z[order[count - 1]]]
  return set(map(int, order))


@settings(max_examples=60, deadline=None)
@given(
  seed=st.integers(0, 2**20),
  ties=st.booleans(),
  top_k=st.sampled_from([0, 1, 2, 5, 12]),
  top_p=st.sampled_from([0.05, 0.501, 0.9, 0.999, 1.0]),
)
def test_top_k_and_top_p_keep_the_tokens_of_the_definition(seed, ties, top_k, top_p):
  rng = np.random.default_rng(seed)
  z = rng.integers(-2, 3, 12) * 1.01 if ties else rng.normal(size=12) * 2
  found = np.asarray(truncate(jnp.asarray(z[None], jnp.float32), top_k, top_p))[0]
  assert set(np.flatnonzero(np.isfinite(found)).tolist()) == allowed_set(z, top_k, top_p)
  kept = np.isfinite(found)
  np.testing.assert_array_equal(found[kept], z.astype(np.float32)[kept])


@pytest.mark.parametrize("choice", [Choice(top_k=3), Choice(top_p=0.8), Choice(top_k=9, top_p=0.6)])
def test_truncated_frequencies_equal_the_renormalised_softmax(choice):
  z = np.random.default_rng(5).normal(size=40) * 2
  allowed = sorted(allowed_set(z, choice.top_k, choice.top_p))
  assert len(allowed) > 1
  expected = np.zeros(40)
  expected[allowed] = softmax(z[allowed])
  found = frequencies(z, 2**14, jax.jit(lambda z, u: choose.choose(z, u, choice)))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1.01 / 2**14 + 2e-6)
  assert not np.delete(found, allowed).any()


def test_top_k_of_a_small_vocabulary_or_one_token_is_a_choice_too():
  z = np.random.default_rng(6).normal(size=(5, 9)).astype(np.float32)
  uniform = np.linspace(0, 0.999, 5, dtype=np.float32)
  one = choose.choose(z, uniform, Choice(top_k=1))
  np.testing.assert_array_equal(one, z.argmax(-1))
  every = choose.choose(z, uniform, Choice(top_k=9))
  np.testing.assert_array_equal(every, inverse_cdf(z, uniform))


def test_temperature_zero_takes_the_likeliest_and_of_ties_the_first():
  z = np.asarray([[0.0, 3.0, 3.0], [5.0, -1.0, 2.0]], np.float32)
  for uniform in EDGES:
    token = choose.choose(z, np.full(2, uniform), Choice(temperature=0.0))
    np.testing.assert_array_equal(token, [1, 0])


def test_only_the_plain_distribution_can_be_trained_on():
  for temperature in (0.3, 1.0, 2.0):
    assert Choice(temperature=temperature).check_trainable() is None
  for bad, field in itertools.chain(
    ((Choice(temperature=t), "temperature=") for t in (0.0, -1.0)),
    [(Choice(top_k=5), "top_k=5"), (Choice(top_p=0.9), "top_p=0.9")],
  ):
    reason = bad.check_trainable()
    assert reason and field in reason and "\n" not in reason
