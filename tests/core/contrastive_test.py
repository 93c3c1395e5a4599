"""The contrastive loss against float64 numpy, and what paper 04 says of it."""

import math

import jax
import numpy as np
import pytest

from grpo_jax.core import contrastive

B, E = 8, 5
Q, K = np.random.default_rng(0).normal(size=(2, B, E)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(E, E)).astype(np.float32)
pair_loss = jax.jit(contrastive.info_nce)


def by_hand(q, k, w):
  """Each row's loss by itself, with the row's maximum taken off as in the authors' code."""
  q, k, w = (np.asarray(x, np.float64) for x in (q, k, w))
  half, total = len(q) // 2, 0.0
  for i in range(len(q)):
    others = range(half, 2 * half) if i < half else range(half)
    score = np.asarray([q[i] @ w @ k[j] for j in others])
    score -= score.max()
    total += -(score[i % half] - math.log(np.exp(score).sum())) / half / 2
  return total


def test_loss_equals_numpy_loops():
  assert float(pair_loss(Q, K, W)) == pytest.approx(by_hand(Q, K, W), rel=1e-5)


def test_one_permutation_of_both_halves_changes_nothing():
  order = np.random.default_rng(2).permutation(B // 2)
  both = np.concatenate([order, order + B // 2])
  before, after = (pair_loss(q, k, W) for q, k in ((Q, K), (Q[both], K[both])))
  assert float(after) == pytest.approx(float(before), rel=1e-6)
  one = np.concatenate([order, np.arange(B // 2, B)])  # of one half only: other pairs
  assert abs(float(pair_loss(Q[one], K[one], W)) - float(before)) > 1e-2


@pytest.mark.parametrize("rows", [2, 4, 8])
def test_no_weight_gives_the_logarithm_of_the_number_of_pairs(rows):
  loss = pair_loss(Q[:rows], K[:rows], np.zeros_like(W))
  assert float(loss) == pytest.approx(math.log(rows // 2), abs=1e-6)


def test_pairs_that_are_alike_and_unlike_all_others_cost_nothing():
  far = np.tile(100 * np.eye(4, E, dtype=np.float32), (2, 1))
  assert float(pair_loss(far, far, np.eye(E, dtype=np.float32))) < 1e-6


def test_keys_get_no_gradient_and_queries_the_right_one():
  grad = jax.jit(jax.grad(contrastive.info_nce, argnums=(0, 1, 2)))(Q, K, W)
  assert not np.any(grad[1])
  rng = np.random.default_rng(3)
  for place, array in ((0, Q), (2, W)):
    direction = rng.normal(size=array.shape)
    moved = []
    for step in (1e-5, -1e-5):
      arrays = [Q, K, W]
      arrays[place] = array + step * direction
      moved.append(by_hand(*arrays))
    slope = (moved[0] - moved[1]) / 2e-5
    assert float(np.sum(grad[place] * direction)) == pytest.approx(slope, rel=1e-4)
