"""What every token world must do: a new world is covered without a line here."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import token_worlds as tw

from grpo_jax import envs
from grpo_jax.envs.world import PAD, STOP, Verdict
from grpo_jax.errors import UserError

every_world = pytest.mark.parametrize("name", envs.names())
CHANCE_ROWS = 8 * tw.ROWS


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), a, b)


@every_world
def test_sizes_and_dtypes_are_those_of_the_contract(name):
  world = tw.get(name)
  made, proposals, played = tw.cases(world)
  n, t = proposals.shape
  assert world.name == name and 3 <= world.vocab <= 64 and t == world.answer
  assert len(set(world.symbols)) == world.vocab and world.symbols[:2] == ("_", ".")
  assert made.tokens.shape == (n, world.prompt) and made.tokens.dtype == np.int32
  assert made.length.shape == (n,) and made.length.dtype == np.int32
  assert 0 < world.chance < world.best <= 1
  verdict = played.verdict
  assert isinstance(verdict, Verdict)
  assert verdict.reward.dtype == np.float32 and verdict.correct.dtype == bool
  assert verdict.reward.shape == verdict.correct.shape == (n,)
  if world.parts:
    assert verdict.parts.shape == (n, len(world.parts)) and verdict.parts.dtype == np.float32
  else:
    assert verdict.parts is None
  if verdict.turn_reward is not None:
    assert verdict.turn_reward.shape == (n, world.turns)
    assert verdict.turn_reward.dtype == np.float32
  assert np.all((verdict.reward >= 0) & (verdict.reward <= 1))
  assert (world.start is None) == (world.step is None) == (world.turns == 1)


@every_world
def test_prompts_are_padded_exactly_beyond_their_length(name):
  world = tw.get(name)
  made, _ = tw.problems(world, tw.ROWS)
  beyond = np.arange(world.prompt) >= made.length[:, None]
  assert np.all(made.length >= 1) and np.all(made.length <= world.prompt)
  assert np.all(made.tokens[beyond] == PAD) and np.all(made.tokens[~beyond] > STOP)
  assert np.all(made.tokens < world.vocab)


@every_world
def test_equal_ids_give_equal_problems_and_other_ids_other_ones(name):
  world = tw.get(name)
  made, solutions = tw.problems(world, tw.ROWS)
  ids = jnp.arange(tw.ROWS)[::-1] // 2
  again, _ = tw.compiled(world)[0](0, ids)
  assert_same(tw.pick(made, np.asarray(ids)), jax.tree.map(np.asarray, again))
  assert len(np.unique(solutions, axis=0)) > 1


@every_world
def test_solutions_are_right_and_reach_the_best_reward(name):
  world = tw.get(name)
  made, solutions = tw.problems(world, tw.ROWS)
  played = tw.play(world, made, solutions)
  assert np.all(played.verdict.correct) and np.all(played.done)
  spread = np.std(played.verdict.reward) / np.sqrt(tw.ROWS)
  assert np.mean(played.verdict.reward) >= world.best - 4 * spread - 1e-6


@every_world
def test_solutions_hold_the_tokens_that_the_world_forces(name):
  world = tw.get(name)
  made, solutions = tw.problems(world, tw.ROWS)
  played = tw.play(world, made, np.where(solutions == PAD, 3, solutions))
  np.testing.assert_array_equal(played.tokens, solutions)
  if world.step is None:
    ends = solutions[np.arange(tw.ROWS), played.length - 1]
    assert np.all(ends == STOP) and not np.any(played.forced)


@every_world
def test_random_tokens_are_right_as_often_as_chance_says(name):
  world = tw.get(name)
  rng = np.random.default_rng(1)
  rows = np.arange(CHANCE_ROWS) % tw.ROWS
  made = tw.pick(tw.problems(world, tw.ROWS)[0], rows)
  proposals = rng.integers(0, world.vocab, (CHANCE_ROWS, world.answer)).astype(np.int32)
  found = np.mean(tw.play(world, made, proposals).verdict.correct)
  assert abs(found - world.chance) <= 4 * np.sqrt(world.chance / CHANCE_ROWS)


@every_world
def test_what_lies_beyond_the_length_changes_no_verdict(name):
  played = tw.cases(tw.get(name))[2]
  assert np.mean(played.length < played.tokens.shape[1]) > 0.1 or np.all(played.forced == 0)
  assert_same(played.verdict, played.dirty)


def test_a_stop_beyond_the_length_ends_no_answer():
  world = tw.get("modular_addition")
  made, solutions = tw.problems(world, tw.ROWS)
  score = jax.jit(world.score)
  for length, right in ((1, False), (2, True)):
    verdict = score(tw.pick(made, 0), (), solutions[0], jnp.int32(length))
    assert bool(verdict.correct) == right


@every_world
def test_turns_follow_each_other_and_finished_episodes_stay_finished(name):
  world = tw.get(name)
  _, _, played = tw.cases(world)
  if world.step is None:
    return
  on = np.arange(world.answer) < played.length[:, None]
  turn = np.where(on, played.turn, played.turn[np.arange(tw.ROWS), played.length - 1][:, None])
  steps = np.diff(turn, axis=1)
  assert np.all((turn >= 0) & (turn < world.turns)) and np.all((steps == 0) | (steps == 1))
  assert np.all(turn[:, 0] == 0) and not np.any(played.forced[:, 0])
  assert np.all(played.done)
  made, solutions = tw.problems(world, tw.ROWS)

  @functools.partial(jax.jit, compiler_options=tw.FAST)
  @jax.vmap
  def after_the_end(problem, token):
    state, _ = jax.lax.scan(
      lambda c, t: (world.step(problem, c[0], t), None), world.start(problem), token
    )[0]
    over = world.step(problem, state, jnp.int32(STOP))
    more = world.step(problem, over[0], token[0])
    return over, more

  over, more = after_the_end(tw.pick(made, slice(8)), solutions[:8])
  assert np.all(over[1].done) and np.all(more[1].done)
  assert_same(over[0], more[0])


@every_world
def test_one_by_one_equals_vmap(name):
  world = tw.get(name)
  made, proposals, played = tw.cases(world)
  one = jax.jit(functools.partial(tw.play_one, world), compiler_options=tw.FAST)
  for i in (0, 1, tw.ROWS // 2, tw.ROWS // 2 + 1):
    got = one(tw.pick(made, i), proposals[i])
    for field in ("tokens", "length", "forced", "turn", "done"):
      assert_same(getattr(got, field), getattr(played, field)[i])
    assert_close(got.verdict, tw.pick(played.verdict, i))


def test_verdicts_without_jit_are_the_same():
  world = tw.get("hidden_number")
  made, proposals, played = tw.cases(world)
  with jax.disable_jit():
    got = tw.play_one(world, tw.pick(made, 0), jnp.asarray(proposals[0]))
  assert_same(got.tokens, played.tokens[0])
  assert_close(got.verdict, tw.pick(played.verdict, 0))


@pytest.mark.slow
@every_world
def test_problems_and_solutions_without_jit_are_the_same(name):
  world = tw.get(name)
  made, solutions = tw.problems(world, tw.ROWS)
  with jax.disable_jit():
    problem = world.problem(jax.random.fold_in(jax.random.key(0), 5))
    solution = world.solution(problem)
    verdict = tw.play_one(world, problem, solution).verdict
  assert_same(tw.pick(made, 5), jax.tree.map(np.asarray, problem))
  assert_same(solutions[5], np.asarray(solution))
  assert bool(verdict.correct)


@every_world
def test_parameters_out_of_range_are_named(name):
  module = inspect.getmodule(tw.get(name).problem) or envs
  make = module.make if hasattr(module, "make") else functools.partial(envs.get, name)
  for parameter, default in inspect.signature(make).parameters.items():
    if isinstance(default.default, bool):
      continue
    bad = "nonsense" if isinstance(default.default, str) else -3
    with pytest.raises(ValueError, match=parameter) as error:
      envs.get(name, **{parameter: bad})
    assert "\n" not in str(error.value)


def test_unknown_worlds_and_parameters_are_named():
  with pytest.raises(UserError, match="countdown"):
    envs.get("countdwn")
  with pytest.raises(UserError, match="numbers"):
    envs.get("countdown", number=3)
