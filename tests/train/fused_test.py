"""Whole runs on token worlds: equal alone and together, honest about what was sampled, learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import envs, methods
from grpo_jax.envs.world import STOP
from grpo_jax.errors import UserError
from grpo_jax.models import decoder, policy
from grpo_jax.rollout import flat, play
from grpo_jax.train.programs import draw, fused
from grpo_jax.train.programs.seeds import over_seeds

SMALL = {"updates": 4, "eval_every": 2, "prompts": 4, "group": 4, "problems": 64, "heldout": 8}
SMALL |= {"split": "id"}  # additions modulo 5 are too few to hold some out
ADDITION = envs.get("modular_addition", modulus=5)
TINY = fused.tiny_config(ADDITION.vocab, hidden=16, layers=1, heads=2)


@functools.cache
def played(name: str, temperature: float = 1.0):
  """(world, config, params, problems, rollouts, batch) of 3 problems, 4 rollouts each."""
  world = envs.get(name)
  config = fused.tiny_config(world.vocab, hidden=16, layers=1, heads=2)
  params = decoder.init(config, jax.random.key(3))
  params["head"] = params["head"] * 20  # far from uniform, so that a wrong key or position shows
  ids = jnp.arange(3)
  problems = world.problems(0, ids)
  keys = jax.random.split(jax.random.key(1), 3)
  run = jax.jit(functools.partial(play.play, world, config, group=4))
  return world, config, params, problems, *run(params, problems, ids, keys)


@pytest.mark.parametrize("name", ["modular_addition", "hidden_number", "key_door"])
def test_the_sampler_s_log_probabilities_are_the_trainer_s(name):
  _, config, params, _, _, batch = played(name)
  fwd = jax.jit(policy.make_forward(config, chunk=0))(params, batch)
  assert float(jnp.sum(batch.mask)) > 12
  np.testing.assert_allclose(np.where(batch.mask > 0, batch.logp_sampler, 0), fwd.logp, atol=1e-5)


@pytest.mark.parametrize("name", ["hidden_number", "key_door"])
def test_an_episode_is_what_the_world_says_when_it_is_stepped_through_in_python(name):
  world, _, _, problems, rollouts, batch = played(name)
  step = jax.jit(world.step)
  tokens = np.asarray(batch.tokens).reshape(3, 4, -1)
  mask = np.asarray(batch.mask).reshape(3, 4, -1)
  unit = np.asarray(batch.unit).reshape(3, 4, -1)
  for n in range(3):
    problem = jax.tree.map(lambda x, n=n: x[n], problems)
    for g in range(4):
      state, following = world.start(problem)
      for t in range(world.answer):
        if following.done:
          assert not tokens[n, g, t:].any() and not mask[n, g, t:].any()
          break
        forced = int(following.force)
        assert mask[n, g, t] == (forced < 0)
        if forced >= 0:
          assert tokens[n, g, t] == forced
        else:
          assert unit[n, g, t] == int(following.turn)
        state, following = step(problem, state, tokens[n, g, t])
      assert bool(rollouts.truncated[n, g]) == (not bool(following.done))
      length = jnp.int32(rollouts.length[n, g])
      verdict = world.score(problem, state, jnp.asarray(tokens[n, g]), length)
      assert float(verdict.reward) == float(rollouts.reward[n, g])
      np.testing.assert_array_equal(
        verdict.turn_reward, np.asarray(batch.unit_reward).reshape(3, 4, -1)[n, g]
      )


@pytest.mark.parametrize("name", ["modular_addition", "key_door"])
def test_demonstrations_come_as_one_given_rollout_after_the_sampled_ones(name):
  world, _, _, problems, rollouts, batch = played(name)
  whole, rows = jax.jit(functools.partial(play.with_demonstrations, world))(
    problems, rollouts, batch
  )
  assert whole.reward.shape == (3, 5)
  np.testing.assert_array_equal(whole.given, np.arange(5)[None] == np.full((3, 1), 4))
  np.testing.assert_array_equal(whole.reward[:, :4], rollouts.reward)
  assert np.all(np.asarray(whole.correct)[:, 4])
  tokens = np.asarray(rows.tokens).reshape(3, 5, -1)
  np.testing.assert_array_equal(tokens[:, :4].reshape(12, -1), batch.tokens)
  np.testing.assert_array_equal(tokens[:, 4], jax.vmap(world.solution)(problems))
  owner = np.arange(15)[:, None]
  np.testing.assert_array_equal(rows.owner, np.broadcast_to(owner, rows.owner.shape))
  given = np.asarray(rows.logp_sampler).reshape(3, 5, -1)[:, 4]
  assert np.isnan(given).all()
  if world.step is None:  # the mask ends with the stop token
    for row, m in zip(tokens[:, 4], np.asarray(rows.mask).reshape(3, 5, -1)[:, 4], strict=True):
      assert m.sum() == list(row).index(STOP) + 1


@pytest.mark.slow
def test_runs_of_several_seeds_in_one_program_are_the_runs_alone():
  plan = fused.Sizes(**SMALL, warm_steps=10)
  run = fused.make_run(ADDITION, methods.get("grpo", resample=1), plan, TINY)
  seeds, lrs = jnp.arange(2), jnp.asarray([1e-3, 3e-3])
  together = over_seeds(run, jax.devices()[:2])(seeds, lrs)
  alone = jax.jit(run)
  for i in range(2):
    one = alone(seeds[i], lrs[i])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(together), strict=True):
      np.testing.assert_array_equal(a, b[i])  # bitwise: the CPU runs them one after the other
  assert not np.array_equal(*together[0].params["embed"])  # two seeds, two runs


ARMS = {
  "value, reference": ("ppo", {"beta_kl": 0.1}, {"mini": 2}),
  "old entropy": ("gtpo", {}, {}),
  "demonstrations": ("hpt_unified", {"max_tokens": 4}, {}),
  "weighted prompts, fresh optimizer": ("kimi_k1_5", {}, {}),
  "drift": ("spo_single_stream", {}, {"group": 1}),
  "parent": (
    "spo_segment",
    {"form": "tree", "branching": (2, 2), "segment_tokens": 2, "beta_kl": 0.1},
    {"mini": 2},
  ),
  "values of segments": ("spo_segment", {"interval": 1, "samples": 2, "beta_kl": 0.0}, {}),
}


TWINS = ("old entropy", "drift", "values of segments")  # 20 s each, and tested by their methods too


@pytest.mark.parametrize(
  "arm", [pytest.param(arm, marks=[pytest.mark.slow] * (arm in TWINS)) for arm in ARMS]
)
def test_every_kind_of_need_is_met(arm):
  name, args, plan = ARMS[arm]
  plan = fused.Sizes(**SMALL | {"updates": 2, "eval_every": 1} | plan)
  state, curves = jax.jit(fused.make_run(ADDITION, methods.get(name, **args), plan, TINY))(0)
  assert curves.accuracy.shape == (3,) and int(state.step) == 2
  for leaf in jax.tree.leaves((state.params, curves)):
    assert np.isfinite(leaf).all()
  assert float(curves.train["max_logp_gap"][0]) < 1e-5


def test_the_policy_s_own_belief_reaches_the_method():
  plan = fused.Sizes(**SMALL | {"updates": 2, "eval_every": 2})
  world = envs.get("lookup", keys=3, hops=1, calls=1)
  config = fused.tiny_config(world.vocab, hidden=16, layers=1, heads=2)
  args = {"beta_kl": 0.0, "penalty": None}
  runs = {
    gain: jax.jit(fused.make_run(world, methods.get("igpo", gain=gain, **args), plan, config))(0)
    for gain in ("prob", "constant")
  }
  for state, curves in runs.values():
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, curves)))
    assert curves.held.turns.shape == (2, 2) and curves.held.parts.shape == (2, 2)
  a, b = (runs[gain][0].params["embed"] for gain in runs)
  assert not np.array_equal(a, b)


def test_dynamic_sampling_keeps_groups_that_differ_and_their_rows_stay_theirs():
  _, _, _, _, rollouts, batch = played("modular_addition")
  reward = jnp.asarray([[0.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
  kept, rows = flat.keep_informative(rollouts.replace(reward=reward), batch, 2)
  np.testing.assert_array_equal(kept.prompt, [1, 0])
  np.testing.assert_array_equal(kept.alive, [[True] * 4, [False] * 4])
  np.testing.assert_array_equal(rows.owner[:, 0], np.arange(8))
  tokens = np.asarray(batch.tokens).reshape(3, 4, -1)
  np.testing.assert_array_equal(np.asarray(rows.tokens).reshape(2, 4, -1), tokens[[1, 0]])


def test_problems_are_drawn_without_repeats_and_by_their_weights():
  weights = jnp.asarray([0.0, 1.0, 1.0, 2.0])
  pick = jax.jit(jax.vmap(lambda k: draw.choose_problems(k, 4, 2, weights)))
  ids = np.asarray(pick(jax.random.split(jax.random.key(0), 4000)))
  assert not np.any(ids == 0) and np.all(ids[:, 0] != ids[:, 1])
  # P(3 is among two of weights 1, 1, 2) = 1/2 + 2 * (1/4 * 2/3)
  np.testing.assert_allclose(np.mean(np.any(ids == 3, axis=1)), 5 / 6, atol=0.02)


def test_what_the_loop_cannot_supply_is_refused_by_name():
  with pytest.raises(UserError, match="unit_reward"):
    fused.make_run(ADDITION, methods.get("rank_grpo", ranks=2, beta_kl=0.0))
  with pytest.raises(UserError, match="plan Chain: world key_door has turns"):
    fused.make_run(envs.get("key_door"), methods.get("spo_segment", beta_kl=0.0))
  with pytest.raises(UserError, match="does not play the plan Fixed.*loop='offline'"):
    fused.make_run(ADDITION, methods.get("dpo"))
  with pytest.raises(UserError, match="'answer_logp'.*world key_door has no `gold`"):
    fused.make_run(envs.get("key_door"), methods.get("igpo", beta_kl=0.0))
  with pytest.raises(UserError, match="updates=5: must be a multiple of eval_every=2"):
    fused.Sizes(updates=5, eval_every=2)


@pytest.mark.slow
def test_grpo_learns_modular_addition_from_a_weak_policy():
  plan = fused.Sizes(
    updates=300, eval_every=100, warm_steps=400, warm_until=0.3, lr=3e-4, split="id"
  )
  _, curves = jax.jit(fused.make_run(ADDITION, methods.get("grpo"), plan))(0)
  assert float(curves.accuracy[-1]) > 0.9 > float(curves.train["correct"][0]) + 0.3
