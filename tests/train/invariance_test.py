"""What must not matter: how a batch is cut, in which order it comes, and on how many devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from grpo_jax import methods, sharding
from grpo_jax.models import policy
from grpo_jax.rollout import collect
from grpo_jax.rollout.choose import Choice
from grpo_jax.train import setup, update
from grpo_jax.types import Flat
from grpo_jax.verifiers.pool import Scores

slow = pytest.mark.slow
MESHES = [
  pytest.param((8, 1, 1), id="data", marks=slow),
  pytest.param((1, 8, 1), id="fsdp", marks=slow),
  pytest.param((2, 2, 2), id="all three"),
]


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
  """Compilation is nearly all of the time here, and no figure below depends on optimizations."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return tiny.save_model(tmp_path_factory.mktemp("invariance") / "model")


@pytest.fixture(scope="module")
def parts(model):
  """A run on one device, and one step's batch of it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(tiny.ROOT / "tests/train"))
    run = setup.prepare(tiny.make_config(model), lambda text: None, jax.devices()[:1])
  yield run
  run.pool.close()


@pytest.fixture(scope="module")
def collected(parts):
  problems = parts.data.train[:8]
  draw = lambda n: problems[:n]
  return tiny.collected(parts.sampling, parts.state.params, parts.pool, draw, 8, 1, Flat())


def completions(parts, problems, step=1, **changes):
  """(tokens, logp) by (prompt id, sample)."""
  s = dataclasses.replace(parts.sampling, **changes)
  (tokens, logp, length, _), _, _ = collect.generate(s, parts.state.params, problems, step)
  return {
    (p.id, g): (tokens[i, g, : length[i, g]].tolist(), logp[i, g, : length[i, g]])
    for i, p in enumerate(problems)
    for g in range(length.shape[1])
  }


# ---- sampling ------------------------------------------------------------------------------------


def test_completions_depend_on_no_cut_order_or_slots(parts):
  problems = parts.data.train[:8]
  whole = completions(parts, problems)
  assert len({tuple(tokens) for tokens, _ in whole.values()}) > 16  # they differ at all
  for name, other in {
    "reversed": completions(parts, problems[::-1]),
    "halves, three slots": completions(parts, problems[:4], slots=3)
    | completions(parts, problems[4:], slots=3),
    "alone, two samples, no shared start": completions(parts, problems[3:4], group=2, trunk=()),
  }.items():
    for key, (tokens, logp) in other.items():
      assert tokens == whole[key][0], (name, key)
      np.testing.assert_allclose(logp, whole[key][1], atol=2e-5, err_msg=name)


def test_every_step_and_round_and_seed_has_new_noise(parts):
  problems = parts.data.train[:8]
  first = completions(parts, problems)
  step = completions(parts, problems, step=2)
  seed = completions(parts, problems, seed=1)
  s, params = parts.sampling, parts.state.params
  (tokens, _, length, _), _, _ = collect.generate(s, params, problems, 1, 1)
  flat = {k: tokens[k // 4, k % 4, : length[k // 4, k % 4]].tolist() for k in range(32)}
  rounds = {(problems[k // 4].id, k % 4): (ids, None) for k, ids in flat.items()}
  for other in (step, seed, rounds):
    assert sum(first[k][0] != other[k][0] for k in first) > len(first) // 2


def test_keys_of_steps_rounds_prompts_and_repeats_never_meet(parts):
  rows, made = sharding.rows(parts.mesh), set()
  for step in range(3):
    for round_ in (0, 1, 63, 64, 128):
      ids, repeats = np.uint32([0, 1, 1, 64]), np.uint32([0, 0, 1, 0])
      keys = collect._prompt_keys(rows, *np.uint32((0, step, round_)), ids, repeats)
      made |= {tuple(key) for key in np.asarray(jax.random.key_data(keys)).tolist()}
  assert len(made) == 3 * 5 * 4


def test_a_prompt_that_is_twice_in_a_batch_gets_other_samples(parts):
  problem = parts.data.train[0]
  out, _, _ = collect.generate(parts.sampling, parts.state.params, [problem] * 8, 1)
  tokens = out[0]
  assert not np.array_equal(tokens[0], tokens[1])


# ---- gradients -----------------------------------------------------------------------------------


@functools.cache
def compiled(sampling, name, cut, kwargs=()):
  method = methods.get(name, **dict(kwargs))
  forward = policy.make_forward(sampling.config, chunk=0, trunk=sampling.trunk)
  # Subtracts the gradient, and keeps it: a difference of parameters has lost digits.
  tx = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.negative, grads), grads),
  )
  return method, tx, policy.make_score(forward), update.make_update(method, forward, tx, cut)


def gradient(parts, collected, name, cut, mesh=None, **kwargs):
  """The gradient (of several updates: the change); metrics; arrays per token."""
  mesh = mesh or parts.mesh
  method, tx, score, step = compiled(parts.sampling, name, cut, tuple(kwargs.items()))
  params = jax.device_get(parts.state.params)
  state = update.init_state(params, tx, method, len(parts.data.train))
  state = sharding.put(state, sharding.param_specs(state, mesh))
  batch = sharding.put(collected.batch, sharding.rows(mesh))
  rollouts = sharding.put(collected.rollouts, sharding.replicated(mesh))
  if not cut.on_policy:
    batch = batch.replace(logp_old=score(state.params, batch).logp)
  key = sharding.put(jax.random.key(7), sharding.replicated(mesh))
  credit = jax.jit(functools.partial(update.credit_of, method))(
    state.method_state, state.step, rollouts, batch
  )
  state, metrics, per_token = step(state, rollouts, batch, credit, key)
  new = jax.device_get(state)
  change = jax.tree.map(lambda a, b: a - b, params, new.params)
  return (
    new.opt_state if cut.on_policy else change,
    jax.device_get(metrics),
    jax.device_get(per_token),
  )


def assert_near(a, b, rtol):
  """Every array within rtol of its largest entry."""
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    scale = np.abs(x).max()
    assert scale > 0, path
    np.testing.assert_allclose(y, x, atol=rtol * scale, rtol=0, err_msg=str(path))


@pytest.mark.parametrize(
  "name, micro",
  [
    ("grpo", 4),
    *(pytest.param(n, m, marks=slow) for n in ("grpo", "dapo", "gspo") for m in (2, 8)),
  ],
)
def test_gradients_are_the_same_for_any_number_of_micro_batches(parts, collected, name, micro):
  whole, metrics, tokens = gradient(parts, collected, name, update.Cut())
  cut, cut_metrics, cut_tokens = gradient(parts, collected, name, update.Cut(micro=micro))
  assert_near(whole, cut, 1e-6)
  for key, value in metrics.items():
    np.testing.assert_allclose(cut_metrics[key], value, rtol=1e-5, atol=2e-6, err_msg=key)
  for key, value in tokens.items():  # in the order of the batch, whatever the cut
    np.testing.assert_allclose(cut_tokens[key], value, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("shape", MESHES)
def test_the_same_completions_and_gradients_on_8_devices(model, parts, collected, shape):
  axes = dict(zip(sharding.AXES, shape, strict=True))
  mesh = sharding.make_mesh(axes)
  problems = parts.data.train[:8]
  params = sharding.put(
    jax.device_get(parts.state.params), sharding.param_specs(parts.state.params, mesh)
  )
  if axes["fsdp"] > 1:  # the parameters are split, not copied
    assert params["layers"]["up"].addressable_shards[0].data.size < params["layers"]["up"].size
  there = dataclasses.replace(parts.sampling, mesh=mesh)
  one, _, _ = collect.generate(parts.sampling, parts.state.params, problems, 1)
  eight, _, _ = collect.generate(there, params, problems, 1)
  np.testing.assert_array_equal(one[0], eight[0])
  np.testing.assert_allclose(one[1], eight[1], atol=1e-5)
  alone, _, _ = gradient(parts, collected, "grpo", update.Cut())
  spread, _, _ = gradient(parts, collected, "grpo", update.Cut(), mesh)
  assert_near(alone, spread, 1e-5)


def test_an_evaluation_whose_batch_no_mesh_divides_is_that_of_one_device(parts):
  s = dataclasses.replace(parts.sampling, group=1, choice=Choice(temperature=0.0))
  problems = parts.data.heldout[:5]
  one, _, _ = collect.generate(s, parts.state.params, problems, 0)
  mesh = sharding.make_mesh()
  eight, _, _ = collect.generate(
    dataclasses.replace(s, mesh=mesh),
    sharding.put(jax.device_get(parts.state.params), sharding.replicated(mesh)),
    problems,
    0,
  )
  assert one[0].shape == eight[0].shape == (5, 1, 6)
  np.testing.assert_array_equal(one[0], eight[0])


# ---- mini-batches and epochs ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", pytest.param("dr_grpo", marks=slow)])
def test_epochs_of_mini_batches_equal_a_loop_written_by_hand(parts, collected, name):
  """Advantages of the whole batch, denominators of the mini-batch, prompts shuffled each epoch."""
  kwargs = {"max_tokens": 6} if name == "dr_grpo" else {"eps_high": 0.01, "eps_low": 0.01}
  method, cut = methods.get(name, **kwargs), update.Cut(epochs=2, mini=2, micro=2)
  got, metrics, _ = gradient(parts, collected, name, cut, **kwargs)

  r, b = jax.tree.map(jnp.asarray, (collected.rollouts, collected.batch))
  forward = policy.make_forward(parts.sampling.config, chunk=0, trunk=parts.sampling.trunk)
  params = first = jax.tree.map(jnp.asarray, jax.device_get(parts.state.params))
  adv = np.asarray(method.credit((), r, b).adv)
  b = b.replace(logp_old=policy.make_score(forward)(params, b).logp)
  group = r.reward.shape[1]
  losses = []

  @jax.jit
  def loss_and_gradient(params, batch, credit):
    return jax.value_and_grad(lambda p: method.loss(forward(p, batch), batch, credit)[0])(params)

  for epoch in range(2):
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(7), epoch), 8)
    for j in range(2):
      chosen = np.asarray(order)[j::2]
      rows = (chosen[:, None] * group + np.arange(group)[None]).reshape(-1)
      pick = lambda x, rows=rows, chosen=chosen: x[chosen] if x.shape[0] == 8 else x[rows]
      r_j, b_j = jax.tree.map(pick, (r, b))
      b_j = b_j.replace(owner=jnp.arange(len(rows), dtype=jnp.int32)[:, None])
      credit = method.credit((), r_j, b_j).replace(adv=jnp.asarray(adv[rows]))
      loss, grads = loss_and_gradient(params, b_j, credit)
      losses.append(float(loss))
      params = jax.tree.map(lambda p, g: p - g, params, grads)
  assert_near(jax.tree.map(lambda a, z: np.asarray(a - z), first, params), got, 2e-5)
  np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-4, atol=1e-6)


# ---- batches with nothing to learn from ----------------------------------------------------------


def dead(collected, **changes):
  return dataclasses.replace(collected, rollouts=collected.rollouts.replace(**changes))


@pytest.mark.parametrize(
  "cut", [update.Cut(), pytest.param(update.Cut(epochs=2, mini=2, micro=2), marks=slow)]
)
def test_batches_with_nothing_to_learn_from_give_zero_and_no_nan(parts, collected, cut):
  shape = collected.rollouts.reward.shape
  nothing = {
    "all dead": ("grpo", {}, {"alive": np.zeros(shape, bool)}),
    "all rewards equal": ("grpo", {}, {"reward": np.full(shape, 0.7, np.float32)}),
    "all truncated, dropped": (
      "grpo",
      {"drop_truncated": True},
      {"truncated": np.ones(shape, bool)},
    ),
  }
  for name, (method, kwargs, changes) in nothing.items():
    change, metrics, _ = gradient(parts, dead(collected, **changes), method, cut, **kwargs)
    for path, x in jax.tree.leaves_with_path(change):
      assert np.all(x == 0), (name, path)
    assert all(np.isfinite(v) for v in metrics.values()), (name, metrics)


class Judge:
  """Rewards by prompt id: equal inside a group where `flat` says so."""

  def __init__(self, flat):
    self.flat = flat

  def score(self, texts, problems, tokens):
    n = len(texts)
    reward = np.asarray([0.5 if p.id in self.flat else i % 2 for i, p in enumerate(problems)])
    return Scores(
      reward=reward.astype(np.float32),
      parts=reward.astype(np.float32)[:, None],
      correct=reward > 0.7,
      alive=np.ones(n, bool),
      failure=(None,) * n,
      failed={},
      errors=(),
    )


def test_dynamic_sampling_replaces_flat_groups_and_pads_with_the_dead(parts):
  problems = parts.data.train[:16]
  pool = Judge(flat={p.id for p in problems if p.id % 2})
  args = (parts.sampling, parts.state.params, pool)

  def draws():
    queue = list(problems)
    return lambda n: [queue.pop(0) for _ in range(n)]

  full = tiny.collected(*args, draws(), 8, 1, Flat(resample=1))
  assert full.resampled == 8 and full.rollouts.alive.all()
  assert full.rollouts.prompt.tolist() == [p.id for p in problems if p.id % 2 == 0]
  short = tiny.collected(*args, draws(), 8, 1, Flat(resample=0))
  assert short.resampled == 0  # resample=0: every group stays
  padded = tiny.collected(*args, lambda n: problems[:n], 8, 1, Flat(resample=1))
  assert padded.rollouts.alive.all(axis=1).tolist() == [True] * 8
  few = Judge(flat={p.id for p in problems} - {problems[0].id})
  got = tiny.collected(parts.sampling, parts.state.params, few, draws(), 8, 1, Flat(resample=1))
  alive = got.rollouts.alive
  assert alive[0].all() and not alive[1:].any()
  rows = got.batch.mask.reshape(8, 4, -1)
  assert rows[0].any() and not rows[1:].any() and not got.batch.unit_mask[4:].any()
  assert np.isfinite(got.rollouts.reward).all() and (got.rollouts.length[1:] == 0).all()
  # The dead add nothing: one group alone gives the same gradient, whatever is beside it.
  beside, _, _ = gradient(parts, got, "grpo", update.Cut())
  alone = jax.tree.map(lambda x: x[:4] if x.shape[0] == 32 else x[:1], (got.rollouts, got.batch))
  alone = dataclasses.replace(got, rollouts=alone[0], batch=alone[1])
  only, _, _ = gradient(parts, alone, "grpo", update.Cut())
  assert_near(only, beside, 1e-5)
