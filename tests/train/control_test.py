"""Runs on gymnax environments: credit against a loop in float64, honest books, learning."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.common import cli
from grpo_jax import methods
from grpo_jax.core import units
from grpo_jax.envs import control as envs
from grpo_jax.errors import UserError
from grpo_jax.models import mlp
from grpo_jax.models.mlp import MLPConfig
from grpo_jax.train import supply, update
from grpo_jax.train.programs import control
from grpo_jax.train.programs.seeds import over_seeds

pytest.importorskip("gymnax")

CONFIG = MLPConfig(observation=3, actions=2, hidden=(8,))
STEPS = {"rewards": "unit", "bootstrap": True}
SMALL = control.Sizes(updates=4, envs=4, steps=8, epochs=2, mini=2, eval_every=2, eval_episodes=2)


def collected(seed, rows=5, width=12, terminated=0.2, truncated=0.1):
  """Steps with ends of both kinds anywhere, and parameters whose values differ from 0."""
  rng = np.random.default_rng(seed)
  f32 = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  over = rng.uniform(size=(rows, width)) < terminated
  over[0], over[1, -1] = False, True
  limit = (rng.uniform(size=(rows, width)) < truncated) & ~over
  limit[0] = False
  steps = control.Steps(
    observation=f32(rows, width, 3),
    action=jnp.asarray(rng.integers(0, 2, (rows, width)), jnp.int32),
    reward=f32(rows, width),
    terminated=jnp.asarray(over),
    truncated=jnp.asarray(limit),
    final=f32(rows, width, 3),
  )
  return steps, mlp.init(CONFIG, jax.random.key(seed))


def scored(steps, params):
  rollouts, batch = control.assemble(CONFIG, params, steps)
  fwd = mlp.make_forward(CONFIG)(params, batch)
  old = supply.with_old(batch, fwd)
  return rollouts, old.replace(extra={**batch.extra, **old.extra})


@pytest.mark.parametrize("seed", range(4))
def test_advantages_are_those_of_a_loop_in_float64_with_episodes_that_end_inside_the_row(seed):
  gamma, lam = 0.97, 0.9
  steps, params = collected(seed)
  rollouts, batch = scored(steps, params)
  method = methods.get("ppo", gamma=gamma, lam=lam, whiten=False, **STEPS)
  credit = jax.jit(method.credit)((), rollouts, batch)
  double = lambda x: np.asarray(mlp.value(CONFIG, params, x), np.float64)
  value, after = double(steps.observation), double(steps.final)
  reward = np.asarray(steps.reward, np.float64)
  over, limit = np.asarray(steps.terminated), np.asarray(steps.truncated)
  expected = np.zeros_like(value)
  for r in range(value.shape[0]):
    adv = 0.0
    for t in reversed(range(value.shape[1])):
      ended = over[r, t] or limit[r, t]
      if over[r, t]:
        following = 0.0
      elif limit[r, t] or t + 1 == value.shape[1]:
        following = after[r, t]
      else:
        following = value[r, t + 1]
      adv = reward[r, t] + gamma * following - value[r, t] + gamma * lam * (0 if ended else adv)
      expected[r, t] = adv
  assert over[:, :-1].any() and limit[:, :-1].any()
  np.testing.assert_allclose(credit.adv_token, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(credit.extra["target"], expected + value, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(credit.weight, 1 / value.size, rtol=1e-6)


def test_a_rollout_is_what_the_row_holds_of_an_episode():
  steps, params = collected(7)
  rollouts, batch = scored(steps, params)
  reward, over = np.asarray(steps.reward), np.asarray(steps.terminated)
  ends = over | np.asarray(steps.truncated)
  rows, width = reward.shape
  owner = np.asarray(units.token_owner(batch))
  for r in range(rows):
    cuts = [0, *(np.flatnonzero(ends[r, :-1]) + 1), width]
    parts = list(itertools.pairwise(cuts))
    assert np.asarray(rollouts.alive[r]).tolist() == [j < len(parts) for j in range(width)]
    for j, (a, b) in enumerate(parts):
      np.testing.assert_allclose(rollouts.reward[r, j], reward[r, a:b].sum(), rtol=1e-5, atol=1e-6)
      assert int(rollouts.length[r, j]) == b - a
      assert bool(rollouts.truncated[r, j]) == (not over[r, b - 1])
      assert np.all(owner[r, a:b] == r * width + j)


def test_a_mini_batch_has_the_credit_of_its_rows():
  steps, params = collected(3, rows=6)
  rollouts, batch = scored(steps, params)
  method = methods.get("ppo", whiten=False, **STEPS)
  whole = method.credit((), rollouts, batch)
  order = jnp.array([4, 0, 5, 1, 3, 2])
  shape = rollouts.reward.shape
  piece = update._piece(shape, *update._reorder(shape, batch, whole, order), 2, 1)
  b, part = piece[0], update._scaled(piece[1], 2)
  taken = np.asarray(order)[1::2]
  np.testing.assert_array_equal(b.unit_reward, batch.unit_reward[taken])
  alone = method.credit((), jax.tree.map(lambda x: x[taken], rollouts), b)
  np.testing.assert_allclose(part.extra["target"], alone.extra["target"], rtol=1e-6)
  np.testing.assert_allclose(part.adv_token, alone.adv_token, rtol=1e-6)
  np.testing.assert_allclose(part.weight, alone.weight, rtol=1e-6)  # all rows have as many steps


def test_collecting_keeps_the_books_of_returns_and_goes_on_where_it_stopped():
  env = envs.get("CartPole-v1", max_steps_in_episode=9)
  config = MLPConfig(4, 2, hidden=(8,))
  params = mlp.init(config, jax.random.key(0))
  collect = jax.jit(control.make_collect(env, config, control.Sizes(envs=4, steps=25, mini=4)))
  live = control.begin(env, 4, jax.random.key(1))
  np.testing.assert_array_equal(live.last, 0)
  parts = []
  for i in range(2):
    first = live.observation
    live, steps = collect(params, live, jax.random.key(2 + i))
    np.testing.assert_array_equal(steps.observation[:, 0], first)
    parts.append(jax.tree.map(np.asarray, steps))
  whole = control.Steps(*(np.concatenate(x, axis=1) for x in zip(*parts, strict=True)))
  ended = whole.terminated | whole.truncated
  same = ~ended[:, :-1]
  np.testing.assert_array_equal(whole.final[:, :-1][same], whole.observation[:, 1:][same])
  assert whole.truncated.any() and 0 < whole.action.mean() < 1
  for r in range(4):
    *_, before, last = [-1, *np.flatnonzero(ended[r])]
    assert float(live.last[r]) == whole.reward[r, before + 1 : last + 1].sum() == last - before
    assert float(live.total[r]) == whole.reward[r, last + 1 :].sum()


@functools.cache
def small_run(name="ppo", env="CartPole-v1"):
  args = STEPS if name == "ppo" else {}
  return control.make_run(envs.get(env), methods.get(name, **args), SMALL)


@pytest.mark.slow
def test_seeds_in_one_program_are_the_seeds_alone():
  seeds, lrs = jnp.arange(2), jnp.full((2,), 1e-3)
  states, curves = over_seeds(small_run(), jax.devices()[:1])(seeds, lrs)
  alone = jax.jit(small_run())
  for i in range(2):
    state, curve = alone(seeds[i], lrs[i])
    together = jax.tree.map(lambda x, i=i: x[i], (states.params, curves))
    jax.tree.map(np.testing.assert_array_equal, together, (state.params, curve))
  assert curves.train["return"].shape == (2, 4) and curves.reward.shape == (2, 3)
  assert not np.array_equal(curves.train["loss"][0], curves.train["loss"][1])


@pytest.mark.parametrize("env", ["Pendulum-v1", "SimpleBandit-bsuite"])
def test_continuous_actions_and_bandits_go_through_the_same_program(env):
  state, curves = jax.jit(small_run(env=env))(0)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((state.params, curves)))
  assert int(state.step) == 4
  if env == "SimpleBandit-bsuite":
    assert np.all(np.asarray(curves.train["episodes"]) == 4 * 8)


@pytest.mark.parametrize(
  ("name", "args", "plan", "lr"),
  [
    ("ppo", {**STEPS, "gamma": 0.99, "value_coef": 0.25, "beta_entropy": 0.01}, {}, 1e-3),
    ("reinforce", {}, {"epochs": 1, "mini": 1, "steps": 64, "updates": 150}, 1e-2),
  ],
)
def test_cartpole_is_learned_from_the_same_method_records(name, args, plan, lr):
  plan = control.Sizes(**{"updates": 60, "anneal": False, **plan})
  run = control.make_run(envs.get("CartPole-v1"), methods.get(name, **args), plan)
  _, curves = jax.jit(run)(0, lr)
  first, last = np.asarray(curves.train["return"])[[1, -1]]
  assert first < 40 and last > 80
  assert float(curves.reward[-1]) > 100


@pytest.mark.parametrize(
  ("method", "message"),
  [
    (("grpo", {"beta_kl": 0.1}), "needs 'ref'"),
    (("grpo", {"resample": 2}), "chooses what is sampled"),
    (("spo_segment", {}), "does not play the plan Chain"),
  ],
)
def test_what_control_cannot_supply_is_refused(method, message):
  name, args = method
  with pytest.raises(UserError, match=message):
    control.check(envs.get("CartPole-v1"), methods.get(name, **args))


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    ({"envs": 0}, "plan.envs=0"),
    ({"updates": 10, "eval_every": 3}, "plan.eval_every=3: must divide updates=10"),
    ({"envs": 6, "mini": 4}, "plan.mini=4: must divide envs=6"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(bad, message):
  with pytest.raises(UserError, match=message):
    control.Sizes(**bad)


def test_a_config_runs_to_its_files_and_is_not_run_twice(tmp_path, capsys, monkeypatch):
  folder = tmp_path / "run"
  command = ["--config=configs/cartpole.py:debug", f"--workdir={folder}"]
  assert train.main(command) == 0
  first = capsys.readouterr().out
  final = json.loads(first.splitlines()[-1].removeprefix("final: "))
  assert final == json.loads((folder / "final.json").read_text())
  assert final["env_steps_a_seed"] == 4 * 512 and 5 < final["return"] < 60
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert [r["step"] for r in rows if r["kind"] == "train"] == [1, 2, 3, 4]
  assert [r["step"] for r in rows if r["kind"] == "eval"] == [0, 2, 4]
  with np.load(folder / "curves.npz") as curves:
    assert curves["return"].shape == (2, 4) and curves["eval_return"].shape == (2, 3)
  monkeypatch.setattr(control, "make_run", lambda *args: None)
  assert train.main(command) == 0
  assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.env=CartPol-v1", "did you mean 'CartPole-v1'"),
    ("--config.seeds=0", "seeds=0"),
    ("--config.plan.mini=3", "plan.mini=3"),
  ],
)
def test_a_bad_config_is_one_line(tmp_path, capsys, flag, message):
  folder = tmp_path / "run"
  assert train.main(["--config=configs/cartpole.py:debug", flag, f"--workdir={folder}"]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1 and not folder.exists()


def test_the_config_sets_only_what_is_read():
  c, _ = cli.load_config("configs/cartpole.py")
  assert set(c.plan.keys()) == set(control.Sizes.__dataclass_fields__)
