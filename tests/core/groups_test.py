"""Group statistics against float64 loops, and what degenerate groups give."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grpo_jax.core import groups
from grpo_jax.errors import UserError

N, G = 3, 5
quick = settings(max_examples=60, deadline=None)
rewards = hnp.arrays(
  np.float32, (N, G), elements=st.sampled_from([0.0, 0.1, 0.7, 1.0, -3.5, 1e3, np.float32(1 / 3)])
)
alives = hnp.arrays(bool, (N, G))


def loops(reward, alive, of_group):
  """of_group(float64 values of the alive) -> values, put back where alive."""
  out = np.zeros(reward.shape)
  for i in range(len(reward)):
    at = np.flatnonzero(alive[i])
    if len(at):
      out[i, at] = of_group(reward[i, at].astype(np.float64))
  return out


def dirty(reward, alive):
  return jnp.asarray(np.where(alive, reward, np.nan)), jnp.asarray(alive)


def check(found, expected, scale):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * scale)


@quick
@given(reward=rewards, alive=alives)
def test_center_and_leave_one_out_equal_loops(reward, alive):
  size = 1 + np.abs(reward).max()
  check(groups.center(*dirty(reward, alive)), loops(reward, alive, lambda r: r - r.mean()), size)
  others = lambda r: np.array(
    [x - np.delete(r, k).mean() if len(r) > 1 else 0 for k, x in enumerate(r)]
  )
  check(groups.leave_one_out(*dirty(reward, alive)), loops(reward, alive, others), size)


@pytest.mark.parametrize("ddof", [0, 1])
@quick
@given(reward=rewards, alive=alives)
def test_standardize_equals_loops_for_each_ddof_and_scale(ddof, reward, alive):
  def by_group(r):
    s = r.std(ddof=ddof) if len(r) > ddof else 0.0
    return (r - r.mean()) / (s + 0.01)

  found = groups.standardize(*dirty(reward, alive), ddof=ddof, eps=0.01)
  check(found, loops(reward, alive, by_group), 10)
  every = reward[alive].astype(np.float64)
  s = every.std(ddof=ddof) if len(every) > ddof else 0.0
  found = groups.standardize(*dirty(reward, alive), ddof=ddof, eps=0.01, scale="batch")
  expected = loops(reward, alive, lambda r: (r - r.mean()) / (s + 0.01))
  check(found, expected, 10)
  found = groups.standardize(*dirty(reward, alive), scale="none")
  np.testing.assert_array_equal(found, groups.center(*dirty(reward, alive)))


@quick
@given(reward=rewards, alive=alives)
def test_whiten_equals_loops_over_the_whole_batch(reward, alive):
  every = reward[alive].astype(np.float64)
  expected = np.zeros(reward.shape)
  if len(every) > 1 and every.max() > every.min():
    expected[alive] = (every - every.mean()) / (every.std(ddof=1) + 1e-8)
  check(groups.whiten(*dirty(reward, alive)), expected, 10)


def test_trap_03_ddof_0_and_1_differ_by_the_named_factor():
  reward, alive = jnp.asarray([[1.0, 0, 0, 1, 1, 0, 0, 0]]), jnp.ones((1, 8), bool)
  a0, a1 = (groups.standardize(reward, alive, ddof=d, eps=0.0) for d in (0, 1))
  np.testing.assert_allclose(a0 / a1, np.sqrt(8 / 7), rtol=1e-6)
  rloo = groups.leave_one_out(reward, alive)
  np.testing.assert_allclose(rloo, groups.center(reward, alive) * 8 / 7, rtol=1e-6)


@pytest.mark.parametrize("value", [0.7, 0.1, 1 / 3, 1e6 + 0.1, -0.3])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 16, 64])
def test_trap_04_a_group_of_equal_rewards_has_advantage_exactly_zero_in_float32(value, size):
  reward, alive = jnp.full((2, size), value, jnp.float32), jnp.ones((2, size), bool)
  for f in (groups.center, groups.leave_one_out, groups.whiten):
    assert (f(reward, alive) == 0).all()
  for scale in groups.SCALES:
    assert (groups.standardize(reward, alive, eps=1e-9, scale=scale) == 0).all()
  assert groups.all_equal(reward, alive).all()


def test_trap_04_float32_really_leaves_a_residue_without_the_guard():
  reward = np.full(8, 0.7, np.float32)
  mean = np.float32(0)
  for r in reward:
    mean += r
  assert reward[0] - mean / np.float32(8) != 0


def test_trap_05_a_group_of_one_has_advantage_zero_and_the_dead_leave_mean_and_std():
  reward = jnp.asarray([[5.0, jnp.nan, jnp.inf], [1.0, 3.0, jnp.nan]])
  alive = jnp.asarray([[True, False, False], [True, True, False]])
  for f in (groups.center, groups.leave_one_out, groups.standardize):
    assert (f(reward, alive)[0] == 0).all()
  np.testing.assert_array_equal(groups.center(reward, alive)[1], [-1, 1, 0])
  np.testing.assert_allclose(groups.std(reward, alive)[1], np.sqrt(2), rtol=1e-6)
  np.testing.assert_array_equal(groups.mean(reward, alive)[:, 0], [5, 2])


def test_trap_05_one_group_does_not_change_another():
  rng = np.random.default_rng(0)
  reward, alive = rng.normal(size=(3, 4)).astype(np.float32), np.ones((3, 4), bool)
  other = reward.copy()
  other[1:] = 1e3 * rng.normal(size=(2, 4))
  for f in (groups.center, groups.leave_one_out, groups.standardize):
    np.testing.assert_array_equal(f(reward, alive)[0], f(other, alive)[0])


def test_statistics_keep_trailing_axes_apart():
  rng = np.random.default_rng(1)
  x, alive = rng.normal(size=(2, 4, 3)).astype(np.float32), rng.uniform(size=(2, 4, 3)) < 0.8
  for f in (groups.center, groups.leave_one_out, groups.standardize):
    apart = np.stack([f(x[..., c], alive[..., c]) for c in range(3)], axis=-1)
    np.testing.assert_allclose(f(x, alive), apart, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reward", [(0.1, 0.3, 0.5), (0.7, 0.1, 0.4), (1e4, 1e4 + 200, 1e4 + 100)])
def test_what_equals_the_mean_on_paper_is_on_neither_side_of_it(reward):
  middle = sorted(reward)[1]
  for order in itertools.permutations(reward):
    x = jnp.asarray([order], jnp.float32)
    above, below = groups.sides(x, jnp.ones((1, 3), bool))
    np.testing.assert_array_equal(above[0], [r > middle for r in order])
    np.testing.assert_array_equal(below[0], [r < middle for r in order])


def test_float32_really_puts_the_middle_one_on_a_side_without_that_guard():
  x = jnp.asarray([[0.1, 0.3, 0.5]], jnp.float32)
  assert groups.center(x, jnp.ones((1, 3), bool))[0, 1] != 0


@quick
@given(reward=rewards, alive=alives)
def test_sides_are_the_signs_of_the_centered_and_the_dead_are_on_none(reward, alive):
  above, below = groups.sides(reward, alive)
  sign = loops(
    reward, alive, lambda r: np.where(abs(r - r.mean()) > 2e-6 * abs(r).max(), r - r.mean(), 0)
  )
  np.testing.assert_array_equal(above, sign > 0)
  np.testing.assert_array_equal(below, sign < 0)


def test_an_unknown_scale_names_the_choices():
  with pytest.raises(UserError, match="^scale: unknown name .std.; known: batch, group, none"):
    groups.standardize(jnp.zeros((1, 2)), jnp.ones((1, 2), bool), scale="std")
