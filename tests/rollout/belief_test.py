"""The policy's belief in the right answer, against scoring it token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import envs
from grpo_jax.models import decoder, policy
from grpo_jax.rollout import belief, play
from grpo_jax.train.programs import fused

N, G = 2, 3


@pytest.mark.parametrize("name", ["lookup", "hidden_number"])
def test_belief_is_the_mean_log_probability_of_the_answer_after_what_precedes_the_turn(name):
  world = envs.get(name)
  config = fused.tiny_config(world.vocab, hidden=16, layers=1, heads=2)
  params = decoder.init(config, jax.random.key(3))
  params["head"] = params["head"] * 20
  ids = jnp.arange(N)
  problems = world.problems(0, ids)
  if name == "lookup":  # by a policy that calls: there are several turns
    _, batch = jax.jit(functools.partial(play.demonstrate, world))(problems, ids)
  else:
    keys = jax.random.split(jax.random.key(1), N)
    run = jax.jit(functools.partial(play.play, world, config, group=G))
    _, batch = run(params, problems, ids, keys)
  each = len(batch.tokens) // N
  forward = policy.make_forward(config, chunk=0)
  gold = belief.gold_of(world, problems)
  score = jax.jit(functools.partial(belief.answer_logp, score=forward), static_argnames="in_turn")
  found = np.asarray(score(gold, params=params, batch=batch))
  in_turn = score(gold, params=params, batch=batch, in_turn=True)
  np.testing.assert_allclose(in_turn, found, atol=1e-6)

  longest = world.prompt + world.answer + 2
  logits = functools.partial(decoder.logits, config, params)
  several = 0
  for row in range(N * each):
    problem = jax.tree.map(lambda x, n=row // each: x[n], problems)
    gold, own = (np.asarray(x) for x in world.gold(problem))
    for u in range(world.turns):
      trained = np.flatnonzero((batch.unit[row] == u) & (batch.mask[row] > 0))
      if not trained.size:
        assert np.isnan(found[row, u])
        continue
      several += u > 0
      before = list(problem.tokens[: problem.length]) + list(batch.tokens[row, : trained[0]])
      text = [int(x) for x in (*before, *gold)]
      z = logits(jnp.asarray([text + [0] * (longest - len(text))]), jnp.asarray([len(text)]))[0]
      logp = np.asarray(jax.nn.log_softmax(z, axis=1))
      at = [len(before) + i for i in range(len(gold)) if own[i]]
      want = np.mean([logp[i - 1, text[i]] for i in at])
      assert found[row, u] == pytest.approx(want, abs=1e-5)
  assert several > 2


@pytest.mark.parametrize("name", ["lookup", "hidden_number"])
def test_the_gold_of_a_world_is_what_its_solution_says_last(name):
  world = envs.get(name)
  problems = world.problems(0, jnp.arange(8))
  gold, own = jax.vmap(world.gold)(problems)
  written = np.asarray(jax.vmap(world.solution)(problems))
  assert gold.shape == own.shape and own.dtype == bool and np.all(np.any(own, axis=1))
  for row, text in enumerate(np.asarray(gold)):
    said = written[row][written[row] > 1]
    np.testing.assert_array_equal(said[-len(text) :], text)
