"""Soft actor-critic: its formulas against float64 numpy, an update by hand, learners that learn."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.core import soft_actor_critic as sac
from grpo_jax.core.transitions import Transitions
from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.train import soft_actor_critic as learners

RNG = np.random.default_rng(0)
POINT = contextual.get("point_robot", goals=4, horizon=6)
PLAN = learners.Sizes(batch=5, hidden=(7, 6), reward_scale=3.0, gamma=0.9, alpha=0.3)
B, A = 5, 2


# ---- formulas in float64 -------------------------------------------------------------------------


def by_hand(mean, log_std, noise):
  """(action, its log-density), by the change of variables as it is written in the paper."""
  std = np.exp(log_std)
  u = mean + std * noise
  normal = -0.5 * ((u - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
  return np.tanh(u), np.sum(normal - np.log(1 - np.tanh(u) ** 2), axis=-1)


def tower(layers, x):
  for i, layer in enumerate(layers):
    x = x @ np.asarray(layer["w"], np.float64) + np.asarray(layer["b"], np.float64)
    x = np.maximum(x, 0) if i + 1 < len(layers) else x
  return x


def policy(actor, state, noise):
  mean, spread = np.split(tower(actor, state), 2, axis=-1)
  return by_hand(mean, -5 + 3.5 * (np.tanh(spread) + 1), noise)


def values(critics, state, action):
  x = np.concatenate([state, action], axis=-1)
  each = [jax.tree.map(lambda w, k=k: w[k], critics) for k in range(2)]
  return np.stack([tower(critic, x)[:, 0] for critic in each])


def losses_by_hand(params, slow, batch, noise):
  alpha = np.exp(np.float64(params["log_alpha"]))
  action, logp = policy(params["actor"], batch.state, noise[0])
  after, logp_after = policy(params["actor"], batch.next_state, noise[1])
  soft = values(slow, batch.next_state, after).min(axis=0) - alpha * logp_after
  y = 3.0 * batch.reward + 0.9 * soft
  q = values(params["critics"], batch.state, batch.action)
  judged = values(params["critics"], batch.state, action).min(axis=0)
  return {
    "critics": np.sum(np.mean((q - y) ** 2, axis=1)) / 2,
    "actor": np.mean(alpha * logp - judged),
    "log_alpha": -alpha * np.mean(logp - A),
  }


def test_the_density_of_a_squashed_action_is_the_change_of_variables():
  mean, log_std, noise = (scale * RNG.normal(size=(40, 3)) for scale in (1, 0.3, 1))
  got = sac.squashed(*(jnp.asarray(x, jnp.float32) for x in (mean, log_std, noise)))
  action, logp = by_hand(mean, log_std, noise)
  np.testing.assert_allclose(got.action, action, atol=2e-6)
  np.testing.assert_allclose(got.logp, logp, rtol=2e-5, atol=2e-4)


def test_densities_integrate_to_one_and_stay_finite_at_the_edge():
  u = np.linspace(-12, 12, 20001)
  got = sac.squashed(
    *(
      jnp.asarray(x, jnp.float32)[:, None]
      for x in (0 * u + 0.4, 0 * u - 0.2, (u - 0.4) / math.exp(-0.2))
    )
  )
  p = np.exp(np.asarray(got.logp, np.float64))
  slope = 1 / np.cosh(u) ** 2  # da = slope du
  assert np.sum(p * slope) * (u[1] - u[0]) == pytest.approx(1, abs=1e-4)
  far = sac.squashed(jnp.full((1, 1), 30.0), jnp.zeros((1, 1)), jnp.zeros((1, 1)))
  assert float(far.action[0, 0]) == 1 and np.isfinite(far.logp).all()


@functools.cache
def problem():
  nets = learners.Networks(POINT, PLAN)
  params = jax.jit(nets.init)(jax.random.key(0))
  slow = jax.jit(nets.init)(jax.random.key(1))["critics"]
  draw = lambda *shape: RNG.normal(size=shape)
  batch = Transitions(
    state=draw(B, 2), action=np.tanh(draw(B, A)), next_state=draw(B, 2), reward=draw(B)
  )
  return nets, params, slow, batch, draw(2, B, A)


def test_the_losses_are_those_of_the_paper_in_float64():
  nets, params, slow, batch, noise = problem()
  single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (batch, noise))
  got = jax.jit(lambda p, s, b, n: learners.losses(nets, PLAN, p, s, b, n))(params, slow, *single)
  want = losses_by_hand(params, slow, batch, noise)
  assert float(got) == pytest.approx(sum(want.values()), rel=2e-5)
  assert all(abs(x) > 1e-2 for x in want.values())


@pytest.mark.parametrize("part", ["actor", "critics", "log_alpha"])
def test_each_loss_moves_its_own_parameters_only(part):
  """The gradient of the sum, along a random direction of one part, against differences in float64
  of that part's own loss, with what it must not see held."""
  nets, params, slow, batch, noise = problem()
  single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (batch, noise))
  grad = jax.jit(jax.grad(lambda p: learners.losses(nets, PLAN, p, slow, *single)))(params)
  way = jax.tree.map(lambda x: RNG.normal(size=x.shape), params[part])
  got = sum(
    float(np.sum(np.asarray(g, np.float64) * w))
    for g, w in zip(jax.tree.leaves(grad[part]), jax.tree.leaves(way), strict=True)
  )
  before = np.float64(losses_at(params, params, slow, batch, noise, part))
  moved = lambda e: (
    params | {part: jax.tree.map(lambda x, w: np.asarray(x, np.float64) + e * w, params[part], way)}
  )
  up, down = (losses_at(moved(e), params, slow, batch, noise, part) for e in (1e-6, -1e-6))
  assert got == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-4)
  assert abs(up - before) > 0


def losses_at(params, held, slow, batch, noise, part):
  """One loss; the target of the critics, the temperature of the actor and the sample of the
  temperature are of `held`."""
  if part == "log_alpha":
    mixed = held | {"log_alpha": params["log_alpha"]}
    return losses_by_hand(mixed, slow, batch, noise)["log_alpha"]
  mixed = held | {part: params[part]}
  return losses_by_hand(mixed, slow, batch, noise)[part]


# ---- learners ------------------------------------------------------------------------------------


def test_histories_are_the_episodes_of_their_own_tasks():
  tasks = jax.tree.map(jnp.asarray, POINT.train)
  made = learners.learn(POINT, tasks, jax.random.key(0), episodes=4, plan=PLAN)
  s = jax.tree.map(np.asarray, made)
  goals = np.asarray(POINT.train.goal)
  assert s.state.shape == (len(goals), 24, 2) and s.action.shape == (len(goals), 24, A)
  np.testing.assert_allclose(s.next_state, s.state + 0.1 * s.action, atol=1e-6)
  want = -np.linalg.norm(s.next_state - goals[:, None], axis=-1)
  np.testing.assert_allclose(s.reward, want, atol=1e-5)
  inside = np.arange(24) % 6 != 5
  np.testing.assert_array_equal(
    s.next_state[:, :-1][:, inside[:-1]], s.state[:, 1:][:, inside[:-1]]
  )
  assert np.abs(s.state[:, ::6]).max() <= 0.1
  early = s.action[:, :12]  # two episodes of warm-up: uniform
  assert abs(early.mean()) < 0.15 and early.std() == pytest.approx(3**-0.5, abs=0.07)
  assert len({x.tobytes() for x in s.action}) == len(goals)  # each learner draws for itself


def test_a_learner_beside_others_learns_as_the_plan_says():
  """One update of one learner in the program of all, by hand: the slow critics' step, and Adam's on
  the gradient of the losses at what was drawn from its own replay."""
  plan = learners.Sizes(batch=3, hidden=(5,), warmup=1, every=6, lr=0.01, tau=0.25)
  nets, tx = learners.Networks(POINT, plan), optax.adam(plan.lr)
  episode = learners._make_episode(POINT, nets, plan, tx)
  tasks = jax.tree.map(jnp.asarray, POINT.train)
  count = len(POINT.train.goal)

  def begin(key):
    params = nets.init(key)
    return learners.LearnerState(
      params=params,
      slow=jax.tree.map(lambda x: 0.5 * x, params["critics"]),
      opt_state=tx.init(params),
    )

  state = jax.jit(jax.vmap(begin))(jax.random.split(jax.random.key(5), count))
  first = jax.tree.map(np.asarray, state)
  room = lambda *shape: jnp.zeros((count, 12, *shape))
  replay = Transitions(state=room(2), action=room(2), next_state=room(2), reward=room())
  with jax.numpy_dtype_promotion("standard"):
    state, replay, _ = episode(tasks, state, replay, jax.random.key(0), jnp.int32(0))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(state), strict=True):
      np.testing.assert_array_equal(a, b)  # warm-up: nothing is learnt
    key = jax.random.key(1)
    after, filled, _ = episode(tasks, state, jax.tree.map(jnp.copy, replay), key, jnp.int32(1))
  keys = jax.random.split(key, 5)
  share = jax.random.uniform(keys[2], (1, count, 3))[0]
  fresh = jax.random.normal(keys[3], (1, count, 2, 3, A))[0]
  where = np.minimum((np.asarray(share) * 12).astype(int), 11)
  batch = jax.tree.map(lambda x: np.stack([x[i][where[i]] for i in range(count)]), filled)
  loss = lambda params, slow, batch, noise: learners.losses(nets, plan, params, slow, batch, noise)
  grads = jax.jit(jax.vmap(jax.grad(loss)))(first.params, first.slow, batch, fresh)
  adam = lambda x, g: x - 0.01 * g / (np.abs(g) + 1e-8)  # its first step
  want = jax.tree.map(lambda x, g: adam(np.asarray(x), np.asarray(g)), first.params, grads)
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(after.params), strict=True):
    np.testing.assert_allclose(b, a, atol=1e-4)
  slow = jax.tree.map(lambda s, c: 0.75 * s + 0.25 * c, first.slow, want["critics"])
  for a, b in zip(jax.tree.leaves(slow), jax.tree.leaves(after.slow), strict=True):
    np.testing.assert_allclose(b, a, atol=1e-4)


def test_learners_come_near_their_goals():
  family = contextual.get("point_robot", goals=4, horizon=10, reach=0.3)
  plan = learners.Sizes(batch=32, hidden=(32, 32), lr=3e-3, gamma=0.9, alpha=0.05)
  tasks = jax.tree.map(jnp.asarray, family.train)
  made = learners.learn(family, tasks, jax.random.key(0), episodes=80, plan=plan)
  returns = np.asarray(made.reward).reshape(-1, 80, 10).sum(axis=2)
  best = np.asarray(jax.vmap(family.best)(tasks))
  start, end = returns[:, :2].mean(axis=1), returns[:, -5:].mean(axis=1)
  assert (end > start).all()
  assert np.mean((end - start) / (best - start)) > 0.6


@pytest.mark.parametrize(
  ("given", "message"),
  [({"batch": 0}, "sac.batch=0"), ({"lr": 0.0}, "sac.lr=0.0"), ({"gamma": 1.5}, "sac.gamma=1.5")],
)
def test_values_out_of_range_are_refused_by_field(given, message):
  with pytest.raises(UserError, match=message):
    learners.Sizes(**given)


def test_what_it_cannot_learn_on_is_refused():
  room = contextual.get("darkroom", n=3, horizon=4)
  with pytest.raises(UserError, match="darkroom: soft actor-critic needs continuous actions"):
    learners.learn(room, room.train, jax.random.key(0), episodes=1)
  with pytest.raises(UserError, match="every=4: must divide horizon=6"):
    learners.learn(POINT, POINT.train, jax.random.key(0), episodes=1, plan=learners.Sizes(every=4))
