"""Single-stream SPO against its formulas in float64 loops, and the invariants of its tracker."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from transcription_test import difference, mean, ppo_term, ratio, rollouts, std, steps

from grpo_jax import methods
from grpo_jax.core import trackers
from grpo_jax.errors import UserError
from grpo_jax.types import Now

Q = 20


def problem(seed, n=12, g=1, dtype=np.float32):
  p = problems.ragged(seed, n=n, g=g, t=5, dead=0.2, holes=0.15, dtype=dtype)
  hit = np.random.default_rng([seed, 2]).uniform(size=(n, g)) < 0.5
  p.reward = np.where(p.alive, hit, np.nan).astype(dtype)
  return p


def visit(p, prompt):
  return problems.rollouts_of(p).replace(prompt=jnp.asarray(prompt, jnp.int32))


def now(drift=None):
  metrics = {} if drift is None else {"drift": jnp.asarray(drift, jnp.float32)}
  return Now(metrics=metrics, step=jnp.int32(0))


def loss_by_loops(p, prompt, table, logp, whiten=True):
  """The paper's loss; table: prompt id -> [alpha, beta]."""
  raw = {}
  for i, j in np.ndindex(*p.reward.shape):
    if p.alive[i, j]:
      a, b = table[prompt[i]]
      raw[i, j] = (0 if p.truncated[i, j] else p.reward[i, j]) - a / (a + b)
  if whiten:
    m, s = mean(list(raw.values())), std(list(raw.values()), 1)
    raw = {k: (x - m) / (s + 1e-8) for k, x in raw.items()}
  terms = [
    ppo_term(ratio(p, logp, i, j, t), raw[i, j], 0.2, 0.28, 10.0)
    for i, j in rollouts(p)
    for t in steps(p, i, j)
  ]
  return mean(terms)


def remember_by_loops(p, prompt, table, drift):
  for q in set(prompt):
    mine = [(i, j) for i, j in np.ndindex(*p.reward.shape) if prompt[i] == q and p.alive[i, j]]
    if mine:
      r = [0 if p.truncated[k] else p.reward[k] for k in mine]
      rho = min(max(2 ** (-drift[mine[0][0]] / 0.06), 0.875), 0.96)
      a, b = table[q]
      table[q] = [rho * a + sum(r), rho * b + len(r) - sum(r)]


@pytest.mark.parametrize(("g", "whiten"), [(1, True), (2, True), (1, False)])
def test_three_steps_equal_the_formulas_in_loops_in_value_gradient_and_tracker(g, whiten):
  method, step = problems.compiled("spo_single_stream", whiten=whiten)
  state, table = method.init(Q), {q: [0.5, 0.5] for q in range(Q)}
  for seed in range(3):
    p, wide = problem(seed, g=g), problem(seed, g=g, dtype=np.float64)
    prompt = np.random.default_rng(seed).permutation(Q)[: len(p.reward)]
    batch, fwd, place = problems.lay_out(p, "flat")[1:]
    _, loss, grad = step(state, visit(p, prompt), batch, fwd)
    by_loops = lambda x: loss_by_loops(wide, prompt, table, x, whiten)  # noqa: B023
    np.testing.assert_allclose(loss, by_loops(wide.fields["logp"]), rtol=2e-5, atol=1e-6)
    expected = difference(by_loops, wide.fields["logp"])
    assert np.abs(expected).max() > 1e-3
    found = np.where(p.trained, np.asarray(grad)[place], 0)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-6)
    drift = np.random.default_rng([seed, 3]).uniform(0, 0.02, len(prompt))
    state = jax.jit(method.remember)(state, visit(p, prompt), batch, now(drift))
    remember_by_loops(wide, prompt, table, drift)
    both = np.stack([state.alpha, state.beta], axis=1)
    np.testing.assert_allclose(both, [table[q] for q in range(Q)], rtol=1e-6)


def test_beta_update_equals_the_moving_average_to_1e_7_for_any_reward():
  with jax.enable_x64(True):
    tracker = trackers.Tracker(alpha=jnp.full(1, 0.5), beta=jnp.full(1, 0.5))
    value, count, rng = 0.5, 1.0, np.random.default_rng(0)
    for _ in range(40):
      r, rho = rng.uniform(), rng.uniform(0.875, 0.96)
      one = problem(0, n=1)
      one.alive[:] = True
      visited = visit(one, [0])
      tracker = trackers.visited(tracker, visited, jnp.full((1, 1), r), jnp.full(1, rho))
      value += (r - value) / (rho * count + 1)
      count = rho * count + 1
      np.testing.assert_allclose([tracker.value[0], tracker.count[0]], [value, count], rtol=1e-7)


def seen(tracker, rewards, rho):
  """The tracker of prompt 0 after these visits."""
  one = problem(0, n=1)
  one.alive[:] = True
  rollouts, rho = visit(one, [0]), jnp.full(1, rho, jnp.float32)

  def step(tracker, r):
    return trackers.visited(tracker, rollouts, jnp.full((1, 1), r), rho), None

  return jax.lax.scan(step, tracker, jnp.asarray(rewards, jnp.float32))[0]


def test_rho_1_gives_the_posterior_mean_of_a_stationary_bernoulli():
  rewards = (np.random.default_rng(1).uniform(size=200) < 0.3).astype(np.float32)
  tracker = seen(trackers.prior(2), rewards, 1.0)
  assert float(tracker.value[0]) == pytest.approx((rewards.sum() + 0.5) / 201, rel=1e-6)
  assert float(tracker.value[1]) == 0.5 and float(tracker.count[1]) == 1


@pytest.mark.parametrize("rho", [0.875, 0.96])
def test_the_stationary_count_is_1_over_1_minus_rho(rho):
  tracker = seen(trackers.prior(1), np.ones(400), rho)
  assert float(tracker.count[0]) == pytest.approx(1 / (1 - rho), rel=1e-4)


def test_the_reward_of_this_step_is_not_in_its_own_baseline():
  method = problems.get("spo_single_stream", whiten=False, rho=0.9)
  p = problem(4)
  p.alive[:], p.truncated[:], p.reward = True, False, np.zeros_like(p.reward)
  batch = problems.lay_out(p, "flat")[1]
  state = trackers.Tracker(alpha=jnp.linspace(0.1, 2, Q), beta=jnp.linspace(1, 0.2, Q))
  prompt = np.arange(12)
  zero = np.asarray(method.credit(state, visit(p, prompt), batch).adv)
  p.reward[3] = 1
  one = np.asarray(method.credit(state, visit(p, prompt), batch).adv)
  exists = np.asarray(batch.unit_mask)
  assert exists[3, 0] == 1
  np.testing.assert_allclose(one - zero, np.eye(12)[:, 3:4], atol=1e-6)
  np.testing.assert_allclose(zero, -np.asarray(state.value)[:12, None] * exists, atol=1e-6)


def test_whitened_advantages_have_mean_0_and_deviation_1_over_the_alive():
  p = problem(5, n=32)
  p.trained[..., 0] = True
  method = problems.get("spo_single_stream")
  batch = problems.lay_out(p, "flat")[1]
  adv = np.asarray(method.credit(method.init(32), visit(p, np.arange(32)), batch).adv)[:, 0]
  alive = p.alive[:, 0]
  assert abs(adv[alive].mean()) < 1e-6 and adv[alive].std(ddof=1) == pytest.approx(1, rel=1e-5)
  assert (adv[~alive] == 0).all()


def test_equal_advantages_and_dead_batches_give_exactly_0_and_keep_the_tracker():
  method, step = problems.compiled("spo_single_stream", rho=0.9)
  p = problem(6)
  p.truncated[:], p.reward = False, np.where(p.alive, np.float32(0.7), np.nan)
  for dead in (False, True):
    p.alive[:] &= not dead
    _, loss, grad = step(method.init(12), *problems.lay_out(p, "flat")[:3])
    assert loss == 0 and (np.asarray(grad) == 0).all()
  state = method.init(Q)
  batch = problems.lay_out(p, "flat")[1]
  after = method.remember(state, visit(p, np.arange(12)), batch, now())
  assert (after.alpha == 0.5).all() and (after.beta == 0.5).all()


def test_visits_of_a_prompt_twice_in_a_batch_count_under_one_decay():
  p = problem(7, n=4)
  p.alive[:], p.truncated[:] = [[1], [1], [1], [0]], False
  p.reward = np.asarray([[1], [0], [1], [np.nan]], np.float32)
  state = trackers.Tracker(alpha=jnp.full(4, 2.0), beta=jnp.full(4, 3.0))
  method = problems.get("spo_single_stream")
  batch = problems.lay_out(p, "flat")[1]
  drift = [0.006, 0.006, 0.0, 9.0]  # 2^-0.1 = 0.933; 0 is held at 0.96; the dead one is no visit
  after = method.remember(state, visit(p, [2, 2, 0, 1]), batch, now(drift))
  rho = 2**-0.1
  np.testing.assert_allclose(after.alpha, [0.96 * 2 + 1, 2, rho * 2 + 1, 2], rtol=1e-6)
  np.testing.assert_allclose(after.beta, [0.96 * 3, 3, rho * 3 + 1, 3], rtol=1e-6)


def test_offline_answers_set_the_prior_and_weights_follow_the_uncertainty():
  method = problems.get("spo_single_stream", solved=(0, 3, 8), tried=8, count_power=0.5)
  state = method.init(3)
  s, eight = np.asarray([0.0, 3, 8]), 1 / (1 - 0.875)
  np.testing.assert_allclose(state.alpha, eight * (s + 0.5) / 9, rtol=1e-6)
  np.testing.assert_allclose(state.beta, eight * (8 - s + 0.5) / 9, rtol=1e-6)
  v = (s + 0.5) / 9
  np.testing.assert_allclose(
    method.weigh(state), np.sqrt(v * (1 - v)) / eight**0.5 + 0.05, rtol=1e-6
  )
  beyond = trackers.Tracker(alpha=jnp.asarray([-1.0, 3.0]), beta=jnp.asarray([3.0, -1.0]))
  np.testing.assert_allclose(trackers.uncertainty(beyond, floor=0.05), 0.05)
  assert problems.get("spo_single_stream", curriculum=False).weigh is None
  with pytest.raises(UserError, match="solved: 3 entries, but there are 4 prompts"):
    method.init(4)


def test_drift_is_measured_on_the_last_completion_that_was_stored():
  rng = np.random.default_rng(8)
  past, table = trackers.no_past(6, 4), {}
  for _ in range(4):
    prompt = rng.integers(0, 6, 5)
    keep = rng.uniform(size=5) < 0.7
    tokens = rng.integers(0, 9, (5, 4))
    mask = (np.arange(4) < rng.integers(0, 5, (5, 1))).astype(np.float32)
    logp = rng.normal(size=(5, 4)).astype(np.float32)
    at = jnp.asarray(prompt, jnp.int32)
    then = jax.tree.map(lambda x: x[at], past)  # noqa: B023
    found = trackers.drift(then.logp, jnp.asarray(logp), then.mask)
    for i, q in enumerate(prompt):
      ts = [t for t in range(4) if q in table and table[q][1][t]]
      expected = mean([abs(table[q][2][t] - logp[i, t]) for t in ts]) if ts else 0
      assert float(found[i]) == pytest.approx(expected, rel=1e-5)
    past = trackers.store(
      past, at, jnp.asarray(tokens, jnp.int32), *map(jnp.asarray, (mask, logp, keep))
    )
    table |= {q: (tokens[i], mask[i], logp[i]) for i, q in enumerate(prompt) if keep[i]}
    for q, (x, m, y) in table.items():
      np.testing.assert_array_equal(past.tokens[q], x)
      np.testing.assert_array_equal(past.mask[q], m)
      np.testing.assert_array_equal(past.logp[q], y)


def test_drift_is_asked_for_unless_rho_is_constant():
  method, p = problems.get("spo_single_stream"), problem(9)
  assert method.needs == ("drift",)
  assert problems.get("spo_single_stream", rho=0.875).needs == ()
  batch = problems.lay_out(p, "flat")[1]
  with pytest.raises(UserError, match="now.metrics\\['drift'\\] is missing"):
    method.remember(method.init(Q), visit(p, np.arange(12)), batch, now())
  with pytest.raises(UserError, match="baseline: unknown name 'group'"):
    methods.get("spo_single_stream", baseline="group")
