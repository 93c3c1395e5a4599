"""The suite that every method passes: a new paper is one file plus one entry of CASES.

A case's programs are compiled once for all its laws, hence the order: all laws of a case, then the
next case. Only the law on jit runs a method without.
"""

import functools

import chex
import jax
import numpy as np
import problems
import pytest
from cases import CASES, label
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from problems import collectives, stable

from grpo_jax import methods
from grpo_jax.core import unified, units


def some(wanted):
  cases = [c for c in CASES if wanted(c)]
  return pytest.mark.parametrize("case", cases, ids=label, scope="module")


every_case = some(lambda case: True)


def close(a, b, tol=2e-6):
  chex.assert_trees_all_close(a, b, rtol=tol, atol=tol)


@functools.cache
def programs(case):
  """(method, step, loss): loss(fwd, batch, credit) -> (loss, metrics, *grads), jitted."""
  method = case.make()
  return (
    method,
    problems.step_of(method),
    jax.jit(functools.partial(problems.value_and_grad, method)),
  )


def prepared(case, seed=0, layout="flat", **kwargs):
  """(method, rollouts, batch, fwd, credit, (loss, metrics, *grads))."""
  method, step, _ = programs(case)
  rollouts, batch, fwd, _ = problems.lay_out(case.problem(seed, **kwargs), layout, method.needs)
  credit, out = step(method.init(len(rollouts.prompt)), rollouts, batch, fwd)
  return method, rollouts, batch, fwd, credit, out


def run(case, p, layout="flat", junk=0.0):
  return problems.run(programs(case)[0], p, layout, junk)


def test_every_method_has_a_case():
  assert {case.name for case in CASES} >= set(methods.names())


@every_case
def test_jit_equals_no_jit_and_compiles_once_for_equal_shapes(case):
  method = case.make()
  traces = []

  @jax.jit
  def step(rollouts, batch, fwd):
    traces.append(1)
    credit = method.credit(method.init(len(rollouts.prompt)), rollouts, batch)
    return problems.value_and_grad(method, fwd, batch, credit)

  for seed in (0, 1):
    rollouts, batch, fwd, _ = problems.lay_out(case.problem(seed), "flat", method.needs)
    credit = method.credit(method.init(len(rollouts.prompt)), rollouts, batch)
    plain = problems.value_and_grad(method, fwd, batch, credit)
    close(step(rollouts, batch, fwd), plain)
  assert len(traces) == 1


@every_case
def test_value_metrics_and_gradient_do_not_depend_on_the_number_of_micro_batches(case):
  _, _, batch, fwd, credit, (loss, metrics, *grads) = prepared(case)
  assert float(abs(loss)) > 1e-4 and np.abs(grads[0]).max() > 1e-3
  for parts in (2, 4):
    rows = batch.tokens.shape[0] // parts
    total, sums, pieces = 0.0, [], []
    for i in range(parts):
      at = slice(i * rows, (i + 1) * rows)
      cut = jax.tree.map(lambda x: np.asarray(x)[at], (fwd, batch, credit))  # noqa: B023
      part, more, *grad = programs(case)[2](*cut)
      total, sums, pieces = total + part, [*sums, more], [*pieces, grad]
    close(total, loss)
    combined = {
      k: max(m[k] for m in sums) if k.startswith("max_") else sum(m[k] for m in sums)
      for k in metrics
    }
    close(combined, metrics)
    for whole, cut in zip(grads, zip(*pieces, strict=True), strict=True):
      if whole is not None:
        close(np.concatenate(cut), np.asarray(whole), 1e-7)


@every_case
def test_permuted_prompts_and_permuted_rollouts_of_a_group_permute_the_gradient(case):
  p = case.problem()
  rng = np.random.default_rng(5)
  loss, metrics, *grads = run(case, p)
  prompts, inside = rng.permutation(len(p.reward)), rng.permutation(case.group)
  for move in (lambda x: x[prompts], lambda x: x[:, inside]):
    loss2, metrics2, *grads2 = run(case, problems.permuted(p, move))
    close((loss2, metrics2), (loss, metrics))
    close(grads2, [None if d is None else move(d) for d in grads], 1e-6)


@every_case
def test_permuted_rows_permute_the_gradient(case):
  method, rollouts, batch, fwd, _, (loss, _, *grads) = prepared(case)
  order = np.random.default_rng(6).permutation(batch.tokens.shape[0])
  mixed, fwd_mixed = jax.tree.map(lambda x: np.asarray(x)[order], (batch, fwd))
  state = method.init(len(rollouts.prompt))
  _, (loss2, _, *grads2) = programs(case)[1](state, rollouts, mixed, fwd_mixed)
  close(loss2, loss)
  close(grads2, [None if d is None else np.asarray(d)[order] for d in grads], 1e-6)


@every_case
def test_flat_shared_packed_and_cut_layouts_agree(case):
  p = case.problem(dead=0.15)
  loss, _, *grads = run(case, p)
  on = np.broadcast_to(p.trained, p.trained.shape)
  for layout in case.layouts:
    other, _, *grads2 = run(case, p, layout)
    close(other, loss)
    for a, b in zip(grads, grads2, strict=True):
      if a is not None:
        close(np.where(on, b, 0), np.where(on, a, 0), 1e-6)


@every_case
def test_gradient_is_exactly_zero_where_weight_is_zero(case):
  *_, credit, (_, _, *grads) = prepared(case, dead=0.3)
  off = np.asarray(credit.weight) == 0
  assert off.any() and not off.all()
  for grad in grads:
    if grad is not None:
      assert (np.asarray(grad)[off] == 0).all()


@every_case
def test_weight_is_zero_off_the_mask_and_on_dead_rollouts(case):
  p = case.problem(dead=0.3)
  *_, weight = run(case, p)
  assert (weight[~p.alive] == 0).all() and (weight >= 0).all() and weight.any()
  _, _, batch, _, credit, _ = prepared(case, dead=0.3)
  assert (np.asarray(credit.weight)[np.asarray(batch.mask) == 0] == 0).all()


@every_case
def test_nan_in_every_masked_slot_changes_neither_value_nor_gradient(case):
  p = case.problem()
  for layout in ("flat", *case.layouts):
    clean, dirty = (run(case, p, layout, junk) for junk in (0.0, np.nan))
    chex.assert_trees_all_equal(clean, dirty)
    assert np.isfinite(dirty[2]).all()


@every_case
def test_nan_in_all_that_is_said_of_a_dead_rollout_changes_neither_value_nor_gradient(case):
  method, clean, dirty = case.make(), case.problem(dead=0.3), case.problem(dead=0.3)
  assert (~dirty.alive & (dirty.length() > 0)).any()
  for x in (*dirty.fields.values(), dirty.unit_value):
    x[~dirty.alive] = np.nan
  for layout in ("flat", *case.layouts):
    expected, found = (problems.run(method, p, layout) for p in (clean, dirty))
    chex.assert_trees_all_equal(found, expected)
    for grad in found[2:4]:
      assert grad is None or (grad[~dirty.alive] == 0).all()


@every_case
def test_an_empty_mask_a_dead_batch_and_all_truncated_give_zero_without_nan(case):
  for change in ("mask", "alive", *["truncated"] * case.kwargs.get("drop_truncated", False)):
    p = case.problem()
    if change == "mask":
      p.trained[:] = False
    elif change == "alive":
      p.alive[:], p.reward[:] = False, np.nan
    else:
      p.truncated[:] = True
    loss, metrics, *grads = run(case, p)
    assert loss == 0
    for x in jax.tree.leaves((metrics, grads)):
      assert (np.asarray(x) == 0).all()


@some(lambda case: case.group_baseline)
def test_equal_rewards_in_a_group_give_exactly_zero_policy_gradient(case):
  p = problems.ragged(0, g=2 if case.group == 2 else 8, n=2)  # the mean of eight 0.7s is not 0.7
  p.reward[:] = np.where(p.alive, np.float32(0.7), np.nan)
  kwargs = {**methods.defaults(case.name), **case.kwargs}
  kwargs = {k: 0.0 if k.startswith("beta_") else v for k, v in kwargs.items() if v is not ...}
  method = methods.get(case.name, **kwargs)
  rollouts, batch, fwd, _ = problems.lay_out(p, "flat", method.needs)
  _, (_, _, grad, _) = problems.step_of(method)(method.init(len(p.reward)), rollouts, batch, fwd)
  assert (np.asarray(grad) == 0).all()


@some(lambda case: case.pure and case.make().policy_gradient)
def test_gradient_is_weight_times_stable_times_adv_times_ratio(case):
  """The unified estimator: d loss / d logp == -weight * stable * adv * ratio."""
  p = case.problem(seed=3)
  *_, place = problems.lay_out(p, "flat")
  method, _, batch, fwd, credit, _ = prepared(case, seed=3)

  @jax.jit
  def estimator(fwd, batch, credit):
    return (
      unified.estimator_coefficient(method, fwd, batch, credit),
      units.token_adv(credit, batch),
    )

  coefficient, adv = (np.asarray(x)[place] for x in estimator(fwd, batch, credit))
  ratio = case.ratio(p) if case.ratio else np.ones_like(adv)
  used = np.asarray(credit.weight)[place] > 0
  expected = np.where(used, stable(case, adv, ratio) * adv * ratio, 0)
  np.testing.assert_allclose(coefficient, expected, rtol=2e-5, atol=1e-7)
  if stable(case, adv, ratio).all():
    return
  logp = np.asarray(fwd.logp)[place]
  term = jax.jit(unified.estimator_term)(
    logp, logp - np.log(ratio), adv, stable(case, adv, ratio).astype(np.float32)
  )
  np.testing.assert_allclose(np.where(used, term, 0), -expected, rtol=2e-5, atol=1e-7)


@some(lambda case: case.make().reduces_to)
def test_reduces_to_names_a_method_with_the_same_value_and_gradient(case):
  other, theirs, ours = case.make().reduces_to
  p = case.problem(seed=4)
  a = problems.without_jit(methods.get(case.name, **ours), p)
  b = problems.without_jit(methods.get(other, **theirs), p)
  assert np.abs(a[1]).max() > 1e-3
  chex.assert_trees_all_equal(a, b)


def on_mesh(*trees):
  """The first everywhere, the rows of the others over eight devices."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  first, *rest = trees
  everywhere, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
  return jax.device_put(first, everywhere), *jax.device_put(tuple(rest), rows)


@every_case
def test_eight_devices_equal_one_with_one_all_reduce_in_credit_and_in_loss(case):
  method, rollouts, batch, fwd, credit, expected = prepared(case)
  rollouts8, batch8, fwd8, credit8 = on_mesh(rollouts, batch, fwd, credit)
  state = method.init(len(rollouts.prompt))
  made, reduces, others = collectives(lambda r, b: method.credit(state, r, b), rollouts8, batch8)
  close(made, credit)
  assert (reduces, others) == (case.credit_reduces, 0)

  def loss_and_grad(fwd, batch, credit):
    loss, _, *grads = problems.value_and_grad(method, fwd, batch, credit)
    return loss, *grads

  out, reduces, others = collectives(loss_and_grad, fwd8, batch8, credit8)
  close(out[0], expected[0])
  close(out[1:], tuple(expected[2:]), 1e-7)
  assert reduces == 1
  assert others == 0 or method.whole_groups  # only a pair loss joins rows
