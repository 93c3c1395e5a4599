"""Segment SPO against its formulas in float64 loops, and what trees and chains must satisfy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from enumerable_test import SEQUENCES, A, exact_values, logps, probability, true_gradient
from transcription_test import difference, mean, rollouts, std, steps

from grpo_jax import methods
from grpo_jax.core import groups, segments, trees
from grpo_jax.errors import UserError
from grpo_jax.types import Batch, Chain, Fwd, Rollouts, Tree


def problem(seed, n=3, g=4, dtype=np.float32, **kwargs):
  p = problems.ragged(seed, n=n, g=g, t=7, dead=0.15, holes=0.15, dtype=dtype, **kwargs)
  rng = np.random.default_rng([seed, 2])
  p.fields["logp_old"] = -rng.gamma(0.3, 1.0, p.trained.shape).astype(dtype)  # often above 0.9
  p.fields["logp"] = (p.fields["logp_old"] + 0.3 * rng.normal(size=p.trained.shape)).astype(dtype)
  return p


def unsure(p, i, j, t):
  return math.exp(p.fields["logp_old"][i, j, t]) < 0.9


def outcome(p, i, j):
  return 0.0 if p.truncated[i, j] else float(p.reward[i, j])


def rollouts_with(reward, parent=None):
  shape = reward.shape
  return Rollouts(
    prompt=jnp.zeros(1, jnp.int32),
    reward=reward,
    alive=jnp.ones(shape, bool),
    correct=jnp.ones(shape, bool),
    truncated=jnp.zeros(shape, bool),
    length=jnp.ones(shape, jnp.int32),
    parent=parent,
  )


# ---- the loss, given the advantages --------------------------------------------------------------


def loss_by_loops(p, adv, kept, logp):
  """adv: (i, j, t) -> advantage before whitening, for the trained tokens of the kept rollouts."""
  tokens = [(i, j, t) for i, j in kept for t in steps(p, i, j)]
  used = [k for k in tokens if unsure(p, *k)] or tokens
  xs = [adv[k] for k in used]
  m, var = mean(xs), std(xs, 1) ** 2
  total, kl = 0.0, 0.0
  for k in used:
    a = (adv[k] - m) / math.sqrt(var + 1e-8)
    r = math.exp(min(max(logp[k] - p.fields["logp_old"][k], -10), 10))
    total += max(-a * r, -a * min(max(r, 0.8), 1.2))
    x = p.fields["logp_ref"][k] - logp[k]
    kl += max(math.exp(x) - x - 1, 0)
  return total / len(used) + 1e-4 * kl / len(kept)


def check(p, wide, batch_of, adv, kept, **kwargs):
  method, step = problems.compiled("spo_segment", **kwargs)
  rollouts_, batch, fwd, place = batch_of(p, method)
  _, loss, grad = step((), rollouts_, batch, fwd)
  by_loops = lambda x: loss_by_loops(wide, adv, kept, x)
  np.testing.assert_allclose(loss, by_loops(wide.fields["logp"]), rtol=5e-5, atol=5e-6)
  expected = difference(by_loops, wide.fields["logp"])
  assert np.abs(expected).max() > 1e-3
  np.testing.assert_allclose(
    np.where(p.trained, np.asarray(grad)[place], 0), expected, rtol=1e-3, atol=5e-6
  )


# ---- chain ---------------------------------------------------------------------------------------


def chain_by_loops(p, value, interval):
  """Advantage of every trained token; value[i, j, k] is that of the k-th boundary."""
  adv = {}
  for i, j in rollouts(p):
    ts = steps(p, i, j)
    cuts = [t for t in ts if unsure(p, i, j, t)][::interval]
    for t in ts:
      before = [k for k, c in enumerate(cuts) if c <= t]
      if not before:
        adv[i, j, t] = 0.0
        continue
      k = before[-1]
      end = value[i, j, k + 1] if k + 1 < len(cuts) else outcome(p, i, j)
      adv[i, j, t] = end - value[i, j, k]
  return adv


def chain_batch(value, interval):
  def make(p, method):
    rollouts_, batch, fwd, place = problems.lay_out(p, "flat", method.needs)
    sure = jnp.exp(batch.logp_old) < 0.9
    unit = segments.cut_points(sure, batch.mask, interval)
    rows, size = len(batch.mask), value.shape[2] + 1
    there = np.zeros((rows, size), np.float32)
    for r, t in np.argwhere(np.asarray(batch.mask)):
      there[r, unit[r, t]] = 1
    values = np.full((rows, size), np.nan, np.float32)  # before the first cut there is no value
    values[:, 1:] = value.reshape(rows, -1)
    return (
      rollouts_,
      batch.replace(
        unit=unit,
        unit_mask=jnp.asarray(there),
        owner=jnp.broadcast_to(jnp.arange(rows)[:, None], there.shape),
        unit_reward=jnp.asarray(values),
      ),
      fwd,
      place,
    )

  return make


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_chain_equals_the_formula_in_loops_in_value_and_gradient(interval):
  p, wide = problem(interval), problem(interval, dtype=np.float64)
  value = np.random.default_rng(interval).uniform(size=(3, 4, 7)).astype(np.float32)
  plan = problems.get("spo_segment", interval=interval).plan
  assert plan == Chain(interval=interval, samples=9, cut=0.9)
  adv = chain_by_loops(wide, value.astype(np.float64), interval)
  check(p, wide, chain_batch(value, interval), adv, rollouts(wide), interval=interval)


def test_chain_advantages_telescope_to_the_reward_minus_the_first_value():
  p = problem(11)
  value = np.random.default_rng(3).uniform(size=(3, 4, 7)).astype(np.float32)
  method, step = problems.compiled("spo_segment", interval=2)
  credit = step((), *chain_batch(value, 2)(p, method)[:3])[0]
  adv = np.asarray(credit.adv).sum(1).reshape(3, 4)
  cut = [k for k in rollouts(p) if any(unsure(p, *k, t) for t in steps(p, *k))]
  assert len(cut) > 4
  for i, j in cut:
    assert adv[i, j] == pytest.approx(outcome(p, i, j) - value[i, j, 0], abs=1e-5)


def test_without_a_token_that_is_unsure_all_advantages_are_0_and_the_mask_is_the_response():
  p = problem(12)
  p.fields["logp_old"][:] = -0.01
  method, step = problems.compiled("spo_segment", beta_kl=0.0)
  value = np.ones((3, 4, 2), np.float32)
  rollouts_, batch, fwd, _ = chain_batch(value, 5)(p, method)
  credit, loss, grad = step((), rollouts_, batch, fwd)
  assert loss == 0 and (np.asarray(grad) == 0).all()
  alive = np.repeat(p.alive.reshape(-1, 1), 7, axis=1) & (np.asarray(batch.mask) > 0)
  assert ((np.asarray(credit.weight) > 0) == alive).all()


def test_a_value_that_was_not_estimated_takes_the_credit_of_the_segments_beside_it():
  rollouts_ = rollouts_with(jnp.ones((1, 1)))
  batch = Batch(
    tokens=jnp.zeros((1, 4), jnp.int32),
    mask=jnp.ones((1, 4)),
    unit=jnp.arange(4)[None],
    unit_mask=jnp.ones((1, 4)),
    owner=jnp.zeros((1, 4), jnp.int32),
  )
  adv = segments.advantage(jnp.asarray([[0.25, 0.5, jnp.nan, 0.75]]), batch, rollouts_)
  np.testing.assert_array_equal(adv, [[0.25, 0, 0, 0.25]])


# ---- tree ----------------------------------------------------------------------------------------


def grown(p, seed):
  """Parents of the 9 nodes of trees (3, 2): some of the first three finished, some dead."""
  rng = np.random.default_rng([seed, 3])
  n = len(p.reward)
  parent = np.broadcast_to(np.asarray([-1, -1, -1, 0, 0, 1, 1, 2, 2]), (n, 9)).copy()
  for i, j in itertools.product(range(n), range(3)):
    if rng.uniform() < 0.3:  # finished: never had children
      p.alive[i, parent[i] == j] = False
  p.reward = np.where(p.alive, rng.integers(0, 2, (n, 9)), np.nan).astype(p.reward.dtype)
  return parent


def tree_by_loops(p, parent, mode):
  """(advantage of the edge into each alive node, value of each node and of each prompt)."""
  value, adv = {}, {}

  def children(i, j):
    return [c for c in range(9) if parent[i, c] == j and p.alive[i, c]]

  def worth(i, j):
    mine = children(i, j)
    value[i, j] = mean([worth(i, c) for c in mine]) if mine else outcome(p, i, j)
    return value[i, j]

  for i in range(len(p.reward)):
    if children(i, -1):
      worth(i, -1)
    for c in range(9):
      if p.alive[i, c]:
        among = [worth(i, s) for s in children(i, parent[i, c])]
        adv[i, c] = worth(i, c) - mean(among)
        if mode == "grpo":
          adv[i, c] /= std(among, 0) + 1e-8
  return adv, value


@pytest.mark.parametrize("mode", ["rloo", "grpo"])
def test_tree_equals_the_formula_in_loops_in_value_and_gradient(mode):
  p, wide = problem(5, g=9), problem(5, g=9, dtype=np.float64)
  parent = grown(p, 5)
  grown(wide, 5)
  kwargs = {"form": "tree", "branching": (3, 2), "mode": mode}
  method = problems.get("spo_segment", **kwargs)
  assert method.plan == Tree((3, 2), 30) and method.plan.nodes == 9

  def batch_of(p, method):
    rollouts_, *rest = problems.lay_out(p, "flat", method.needs)
    return rollouts_.replace(parent=jnp.asarray(parent)), *rest

  edge, value = tree_by_loops(wide, parent, mode)
  ended = batch_of(p, method)[0].replace(reward=jnp.where(p.truncated, 0, p.reward))
  found, prompt = jax.jit(trees.values, static_argnums=1)(ended, 2)
  for (i, j), v in value.items():
    assert float(prompt[i] if j < 0 else found[i, j]) == pytest.approx(v, abs=1e-6)
  kept = [k for k in rollouts(wide) if abs(edge[k]) > 1e-9]
  assert 0 < len(kept) < len(rollouts(wide))
  adv = {(*k, t): edge[k] for k in kept for t in steps(wide, *k)}
  check(p, wide, batch_of, adv, kept, **kwargs)


def tree(rewards):
  parent = [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3
  return rollouts_with(jnp.asarray([rewards], jnp.float32), jnp.asarray([parent]))


def test_the_example_of_the_paper_and_children_sum_to_zero():
  nodes = tree([9, 9, 9, 1, 0, 1, 1, 1, 1, 0, 0, 0])  # rewards of inner nodes are not read
  value, prompt = trees.values(nodes, 2)
  np.testing.assert_allclose(value[0, :3], [2 / 3, 1, 0], rtol=1e-6)
  assert float(prompt[0]) == pytest.approx(5 / 9)
  adv = np.asarray(trees.edge_advantage(nodes, 2))[0]
  assert adv[1] == pytest.approx(4 / 9)
  np.testing.assert_allclose(adv[3:], [1 / 3, -2 / 3, 1 / 3, 0, 0, 0, 0, 0, 0], rtol=1e-6)
  for first in (0, 3, 6, 9):
    assert abs(adv[first : first + 3].sum()) < 1e-6


def test_equal_means_that_round_differently_are_equal():
  third = np.float32(1 / 3)
  leaves = [third, 1, 2 * third, 2 * third, 2 * third, 2 * third, 1, third, 2 * third]
  nodes = tree([0, 0, 0, *leaves])
  for mode in trees.MODES:
    assert (np.asarray(trees.edge_advantage(nodes, 2, mode=mode))[0, :3] == 0).all()


def test_a_tree_of_depth_1_in_grpo_mode_is_grpo_with_ddof_0():
  p = problem(6, n=4)
  rollouts_ = problems.rollouts_of(p)
  expected = groups.standardize(rollouts_.reward, rollouts_.alive, ddof=0, eps=1e-8)
  for parent in (None, jnp.full((4, 4), -1)):
    found = trees.edge_advantage(rollouts_.replace(parent=parent), 1, mode="grpo")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_trees_whose_leaves_are_equal_teach_nothing():
  p = problem(7, g=4)
  p.truncated[:] = False
  p.reward[:] = np.where(p.alive, np.float32(0.7), np.nan)
  for mode in trees.MODES:
    method, step = problems.compiled("spo_segment", form="tree", branching=(4,), mode=mode)
    credit, loss, grad = step((), *problems.lay_out(p, "flat", method.needs)[:3])
    assert loss == 0 and (np.asarray(grad) == 0).all() and (np.asarray(credit.weight) == 0).all()


# ---- exact expectations --------------------------------------------------------------------------


@pytest.fixture
def world():
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    yield rng.normal(size=(1 + A, A)), rng.normal(size=25)


def chain_gradient(theta, tokens, reward, values):
  """Of one completion whose two tokens are segments with these values at their starts."""
  method = problems.get("spo_segment", cut=1.0, whiten=False, beta_kl=0.0)
  batch = Batch(
    tokens=tokens[None],
    mask=jnp.ones((1, 2)),
    unit=jnp.arange(2)[None],
    unit_mask=jnp.ones((1, 2)),
    owner=jnp.zeros((1, 2), jnp.int32),
    logp_old=logps(theta, tokens)[None],
    unit_reward=values[None],
  )
  credit = method.credit((), rollouts_with(reward[None, None]), batch)
  loss = lambda th: method.loss(Fwd(logp=logps(th, tokens)[None]), batch, credit)[0]
  return jax.grad(loss)(theta)


def test_chain_with_exact_values_and_with_one_continuation_each_has_the_exact_gradient(world):
  theta, reward = world
  p, exact = np.asarray(probability(theta)), exact_values(theta, reward)
  of = jax.jit(jax.vmap(chain_gradient, in_axes=(None, 0, 0, 0)))
  tokens, true = jnp.asarray(SEQUENCES), -true_gradient(theta, reward) / 2  # of 2 tokens
  values = np.stack([np.full(25, exact[0]), exact[1 + SEQUENCES[:, 0]]], axis=1)
  found = jnp.einsum("k,kij->ij", p, of(jnp.asarray(theta), tokens, reward, values))
  np.testing.assert_allclose(found, true, rtol=1e-9, atol=1e-12)
  # Monte Carlo: from the prompt any of 25 completions, from the first token any of 5 tokens.
  after = np.exp(np.asarray(jax.nn.log_softmax(theta, axis=1)))[1:]
  every = np.asarray(list(itertools.product(range(25), range(25), range(A))))
  first = SEQUENCES[every[:, 0], 0]
  chance = p[every[:, 0]] * p[every[:, 1]] * after[first, every[:, 2]]
  values = np.stack([reward[every[:, 1]], reward[first * A + every[:, 2]]], axis=1)
  grads = of(jnp.asarray(theta), tokens[every[:, 0]], jnp.asarray(reward)[every[:, 0]], values)
  assert chance.sum() == pytest.approx(1)
  np.testing.assert_allclose(jnp.einsum("k,kij->ij", chance, grads), true, rtol=1e-9, atol=1e-12)


def test_tree_edges_have_the_exact_gradient_but_for_the_share_of_the_node_in_its_baseline(world):
  """2 + 4 edges of one token: the mean of two children holds each of them by a half."""
  theta, reward = world
  method = problems.get(
    "spo_segment",
    form="tree",
    branching=(2, 2),
    cut=1.0,
    whiten=False,
    drop_zero=False,
    beta_kl=0.0,
  )
  parent = jnp.asarray([[-1, -1, 0, 0, 1, 1]])

  def gradient(draw):
    a, b = draw[:2], draw[2:]  # first tokens of two nodes, then two children each
    leaf = jnp.asarray(reward)[jnp.repeat(a, 2) * A + b]
    rollouts_ = rollouts_with(jnp.concatenate([jnp.zeros(2), leaf])[None], parent)
    logp = lambda th: _edges(th, a, b)
    batch = Batch(
      tokens=draw[:, None],
      mask=jnp.ones((6, 1)),
      unit=jnp.zeros((6, 1), jnp.int32),
      unit_mask=jnp.ones((6, 1)),
      owner=jnp.arange(6)[:, None],
      logp_old=logp(jnp.asarray(theta)),
    )
    credit = method.credit((), rollouts_, batch)
    loss = lambda th: method.loss(Fwd(logp=logp(th)), batch, credit)[0]
    return jax.grad(loss)(jnp.asarray(theta)), jnp.exp(jnp.sum(batch.logp_old))

  def _edges(th, a, b):
    table = jax.nn.log_softmax(th, axis=1)
    return jnp.concatenate([table[0, a], table[1 + jnp.repeat(a, 2), b]])[:, None]

  every = jnp.asarray(list(itertools.product(range(A), repeat=6)))
  grads, chance = jax.jit(jax.vmap(gradient))(every)
  true = np.array(true_gradient(theta, reward))
  expected = np.concatenate([true[:1], 2 * true[1:]]) / 6
  assert float(chance.sum()) == pytest.approx(1)
  found = jnp.einsum("k,kij->ij", chance, grads)
  np.testing.assert_allclose(found, -expected, rtol=1e-9, atol=1e-12)


# ---- the rest ------------------------------------------------------------------------------------


def test_the_log_ratio_is_held_within_10():
  p = problem(8, n=1)
  p.alive[:], p.truncated[:], p.trained[:] = True, False, True
  p.reward = np.asarray([[0, 0, 1, 1]], np.float32)
  p.fields["logp_old"][:], p.fields["logp"][:] = -1, 10
  method, step = problems.compiled("spo_segment", form="tree", branching=(4,), beta_kl=0.0)
  _, loss, grad = step((), *problems.lay_out(p, "flat", method.needs)[:3])
  whitened = 1 / math.sqrt(28 / 27)  # half of the 28 tokens have A = -1/2, half 1/2
  assert float(loss) == pytest.approx(whitened * (math.exp(10) - 1.2) / 2, rel=1e-5)
  assert (np.asarray(grad) == 0).all()


def test_missing_data_and_unknown_names_are_one_line():
  p = problem(9)
  rollouts_, batch, *_ = problems.lay_out(p, "flat")
  with pytest.raises(UserError, match="batch.unit_reward is missing"):
    jax.eval_shape(methods.get("spo_segment").credit, (), rollouts_, batch)
  with pytest.raises(UserError, match="rollouts.parent is missing"):
    jax.eval_shape(methods.get("spo_segment", form="tree").credit, (), rollouts_, batch)
  with pytest.raises(UserError, match="form: unknown name 'star'"):
    methods.get("spo_segment", form="star")
  with pytest.raises(UserError, match="mode: unknown name 'loo'"):
    methods.get("spo_segment", mode="loo")
  assert Tree().nodes == 6 + 36 + 216
