"""Families on a simulator of the host: one call for all copies, rewards, splits, MuJoCo itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.envs import contextual, simulator
from grpo_jax.errors import UserError

HAS = simulator.importlib.util.find_spec("mujoco") is not None
real = pytest.mark.skipif(not HAS, reason="MuJoCo is not installed: pip install 'grpo-jax[mujoco]'")


def fake(positions=9, actions=6):
  """x moves by dt * (1 + the first action) * the mass of the first body; the rest decays."""
  calls = []
  rest = np.zeros(2 * positions, np.float32)
  fields = {
    "body_mass": np.asarray([2.0, 1.0]),
    "body_inertia": np.ones((2, 3)),
    "dof_damping": np.ones(positions),
    "geom_friction": np.ones((2, 3)),
  }

  def advance(states, acted, params):
    calls.append((states.shape, {k: v.shape for k, v in params.items()}))
    mass = params["body_mass"][:, 0] if params else 1.0
    after = 0.5 * states
    after[:, 0] = states[:, 0] + 0.1 * (1 + acted[:, 0]) * mass
    return after

  made = simulator.Simulator(
    rest=rest, positions=positions, actions=actions, dt=0.1, fields=fields, advance=advance
  )
  return made, calls


@pytest.fixture
def faked(monkeypatch):
  made, calls = fake()
  monkeypatch.setattr(simulator, "load", lambda *args, **kwargs: made)
  return calls


# ---- without MuJoCo ------------------------------------------------------------------------------


def test_all_copies_under_any_vmap_are_one_call_and_equal_those_alone():
  made, calls = fake(positions=2, actions=1)
  states = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
  acted = np.random.default_rng(1).normal(size=(3, 5, 1)).astype(np.float32)
  step = lambda s, a: simulator.advance(made, s, a)
  many = jax.jit(jax.vmap(jax.vmap(step)))(states, acted)
  assert [shape for shape, _ in calls] == [(15, 4)]
  alone = jax.jit(step)
  for i, j in np.ndindex(3, 5):
    np.testing.assert_array_equal(many[i, j], alone(states[i, j], acted[i, j]))
  want = states[..., 0] + 0.1 * (1 + np.clip(acted[..., 0], -1, 1))
  np.testing.assert_allclose(many[..., 0], want, atol=1e-6)


def test_parameters_are_those_of_the_copy():
  made, calls = fake(positions=2, actions=1)
  mass = jnp.asarray([[1.0, 0.0], [3.0, 0.0]])
  step = jax.vmap(lambda m: simulator.advance(made, jnp.zeros(4), jnp.zeros(1), {"body_mass": m}))
  np.testing.assert_allclose(jax.jit(step)(mass)[:, 0], [0.1, 0.3], atol=1e-6)
  assert calls == [((2, 4), {"body_mass": (2, 2)})]


def test_the_cheetah_is_paid_for_the_target_velocity_and_for_resting_its_muscles(faked):
  family = contextual.get("cheetah_vel", tasks=10, horizon=5, steps=10)
  state = jnp.zeros(18).at[0].set(7.0)
  action = np.asarray([0.5, -2.0, 0, 0, 0.1, 0], np.float32)
  for velocity in np.asarray(family.train.velocity):
    task = family.task(jax.random.key(0)).replace(velocity=jnp.float32(velocity))
    after, reward = jax.jit(family.step)(task, state, action, jax.random.key(0))
    held = np.clip(action, -1, 1)  # 1.5 m/s: 0.15 in 0.1 s
    assert float(reward) == pytest.approx(-abs(1.5 - velocity) - 0.05 * np.sum(held**2), abs=1e-4)
  assert family.observe(after).shape == (17,)
  assert not np.isin(7.15, np.round(family.observe(after), 4))  # x itself is not seen


def test_tasks_are_split_by_seed_and_none_is_in_both_halves(faked):
  make = lambda seed: contextual.get("cheetah_vel", tasks=40, seed=seed)
  one, again, other = make(0), make(0), make(1)
  train, held = np.asarray(one.train.velocity), np.asarray(one.heldout.velocity)
  assert len(train) == 36 and len(held) == 4 and not set(train) & set(held)
  assert train.min() >= 0 and train.max() <= 3 and np.ptp(train) > 2
  np.testing.assert_array_equal(train, again.train.velocity)
  assert not np.array_equal(train, other.train.velocity)
  drawn = {float(one.task(jax.random.key(i)).velocity) for i in range(30)}
  assert drawn <= {float(v) for v in train} and len(drawn) > 10


def test_starts_are_spread_about_rest_and_contexts_are_episodes(faked):
  family = contextual.get("cheetah_vel", tasks=10, horizon=4, steps=8)
  task = family.task(jax.random.key(0))
  starts = jax.vmap(lambda key: family.start(task, key))(jax.random.split(jax.random.key(1), 4000))
  place, speed = np.split(np.asarray(starts), 2, axis=1)
  assert np.abs(place).max() <= 0.1 and place.std() == pytest.approx(0.2 / 12**0.5, rel=0.02)
  assert speed.std() == pytest.approx(0.1, rel=0.02)
  data = jax.jit(lambda key: family.behave(task, key, 8))(jax.random.key(2))
  inside = np.arange(8) % 4 != 3
  np.testing.assert_array_equal(data.next_state[:-1][inside[:-1]], data.state[1:][inside[:-1]])
  assert not np.allclose(data.next_state[3], data.state[4])  # a new episode


def test_no_optimal_action_is_known(faked):
  family = contextual.get("cheetah_vel")
  assert not family.labelled and np.isnan(family.best(family.task(jax.random.key(0))))
  with pytest.raises(UserError, match="cheetah_vel: no optimal action is known"):
    family.label(None, None)


@pytest.mark.parametrize(
  "given", [{"tasks": 1}, {"horizon": 0}, {"steps": 0}, {"high": -1.0}, {"share": 1.0}]
)
def test_values_out_of_range_are_refused_by_field(faked, given):
  with pytest.raises(UserError, match=rf"^cheetah_vel\.{next(iter(given))}"):
    contextual.get("cheetah_vel", **given)


def test_without_mujoco_one_line_names_the_extra(monkeypatch):
  def missing(name):
    raise ImportError(f"No module named {name!r}")

  monkeypatch.setattr(simulator.importlib, "import_module", missing)
  with pytest.raises(UserError, match=r"pip install 'grpo-jax\[mujoco\]'") as error:
    simulator.load("half_cheetah.xml", frames=5)
  assert "\n" not in str(error.value)


# ---- with MuJoCo ---------------------------------------------------------------------------------


@real
def test_the_cheetah_moves_as_gymnasiums_does(tmp_path, monkeypatch):
  import gymnasium

  monkeypatch.chdir(tmp_path)  # its own loading leaves a log behind
  env = gymnasium.make("HalfCheetah-v5").unwrapped
  env.reset(seed=0)
  family = contextual.get("cheetah_vel")
  step = jax.jit(family.step)
  task = family.task(jax.random.key(0))
  rng = np.random.default_rng(0)
  for _ in range(20):
    state = np.concatenate([env.data.qpos, env.data.qvel])
    action = rng.uniform(-1, 1, 6)
    env.data.qacc_warmstart[:] = 0
    seen, _, _, _, info = env.step(action)
    single = lambda x: jnp.asarray(x, jnp.float32)
    after, reward = step(task, single(state), single(action), jax.random.key(0))
    np.testing.assert_allclose(family.observe(after), seen, rtol=2e-3, atol=2e-3)
    want = -abs(info["x_velocity"] - float(task.velocity)) - 0.05 * np.sum(action**2)
    assert float(reward) == pytest.approx(want, abs=2e-3)
  assert abs(state[0]) > 0.05  # it went somewhere


@real
def test_equal_arguments_give_equal_states_whatever_was_simulated_before():
  sim = simulator.load("half_cheetah.xml", frames=5)
  rng = np.random.default_rng(0)
  state = sim.rest[None] + rng.normal(size=(4, 18)) * 0.3
  action = rng.uniform(-1, 1, (4, 6))
  first = sim.advance(state, action, {})
  sim.advance(10 * state, -action, {})
  np.testing.assert_array_equal(sim.advance(state, action, {}), first)
  np.testing.assert_array_equal(sim.advance(state[2:3], action[2:3], {})[0], first[2])


@real
def test_nothing_is_left_in_the_working_folder(tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  sim = simulator.load("half_cheetah.xml", frames=5)
  after = sim.advance(np.full((1, 18), 1e12), np.zeros((1, 6)), {})  # far out of range
  assert np.isfinite(after).all()
  assert list(tmp_path.iterdir()) == [] and "WARNING" not in "".join(capfd.readouterr())


@real
def test_a_walker_moves_as_gymnasiums_does_with_the_body_of_its_task(tmp_path, monkeypatch):
  import gymnasium

  monkeypatch.chdir(tmp_path)
  env = gymnasium.make("Walker2d-v5", frame_skip=4).unwrapped
  family = contextual.get("walker_param", tasks=4, share=0.5, limit=2.0)
  step = jax.jit(jax.vmap(family.step))
  rng = np.random.default_rng(0)
  tasks = jax.tree.map(jnp.asarray, family.train)
  state = np.concatenate([env.init_qpos, env.init_qvel])[None] + rng.normal(size=(2, 18)) * 0.2
  action = rng.uniform(-1, 1, (2, 6))
  single = lambda x: jnp.asarray(x, jnp.float32)
  keys = jax.random.split(jax.random.key(0), 2)
  after, reward = step(tasks, single(state), single(action), keys)
  for i in range(2):
    for name, value in vars(family.train).items():
      getattr(env.model, name)[:] = value[i]
    env.reset(seed=0)
    env.set_state(state[i, :9], state[i, 9:])
    env.data.qacc_warmstart[:] = 0
    seen, _, _, _, info = env.step(action[i])
    np.testing.assert_allclose(family.observe(after[i]), seen, rtol=5e-3, atol=5e-3)
    upright = 0.8 < env.data.qpos[1] < 2 and abs(env.data.qpos[2]) < 1
    want = info["x_velocity"] + upright - 1e-3 * np.sum(action[i] ** 2)
    assert float(reward[i]) == pytest.approx(want, abs=5e-3)
  same = step(tasks, single(state[:1].repeat(2, 0)), single(action[:1].repeat(2, 0)), keys)[0]
  assert np.abs(same[0] - same[1]).max() > 0.05  # another body moves otherwise


def test_bodies_are_scaled_within_the_limit_and_unscaled_at_zero(faked):
  for limit in (0.0, 1.0):
    family = contextual.get("walker_param", tasks=20, limit=limit)
    mass, damping = np.asarray(family.train.body_mass), np.asarray(family.train.dof_damping)
    z = np.log(mass / [[2.0, 1.0]]) / np.log(1.5), np.log(damping) / np.log(1.3)
    for x in z:
      assert np.abs(x).max() <= limit + 1e-5 and x.std() == pytest.approx(limit / 3**0.5, rel=0.2)


def test_a_fallen_walker_is_not_paid_for_standing(faked):
  family = contextual.get("walker_param", tasks=4, share=0.5)
  task = jax.tree.map(lambda x: jnp.asarray(x[0]), family.train)
  step = jax.jit(lambda state: family.step(task, state, jnp.full(6, 0.5), None)[1])
  standing = jnp.zeros(18).at[1].set(2.5)  # the stand-in halves it: 1.25 m
  moved = float(task.body_mass[0]) * 1.5 - 1e-3 * 6 * 0.25  # 0.15 m a mass in 0.1 s
  assert float(step(standing)) == pytest.approx(moved + 1, abs=1e-3)
  for where, value in ((1, 1.0), (1, 5.0), (2, 2.5), (2, -2.5)):
    assert float(step(standing.at[where].set(value))) == pytest.approx(moved, abs=1e-3)
