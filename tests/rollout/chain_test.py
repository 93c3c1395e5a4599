"""Chains: where segments begin, and their values against sums over all continuations."""

import functools

import every_prefix
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.rollout import chain, plans, play
from grpo_jax.types import Chain

N, G, SAMPLES = 2, 4, 300


@functools.cache
def played(interval):
  world, config, params = every_prefix.small()
  ids = jnp.arange(N)
  problems = world.problems(0, ids)
  keys = jax.random.split(jax.random.key(1), N)
  plan = Chain(interval=interval, samples=SAMPLES, cut=0.8)
  game = lambda params, *given: plans.Game(world, config, params, *given, G, N)
  run = jax.jit(lambda *given: chain.play(plan, game(*given)))
  flat = jax.jit(functools.partial(play.play, world, config, group=G))
  whole = run(params, problems, ids, keys)
  took = whole.watched["sampled"] - jnp.sum(whole.batch.mask)
  first = whole.rollouts, whole.batch, took
  return problems, plan, first, flat(params, problems, ids, keys)


def cuts(batch, row, plan):
  """Columns where a segment of the row begins, by the definition."""
  unsure = [
    t
    for t in range(batch.tokens.shape[1])
    if batch.mask[row, t] and np.exp(batch.logp_sampler[row, t]) < plan.cut
  ]
  return unsure[:: plan.interval]


@pytest.mark.parametrize("interval", [1, 2])
def test_segments_begin_at_every_so_manieth_unsure_token(interval):
  _, plan, (rollouts, batch, _), (same, flat) = played(interval)
  np.testing.assert_array_equal(batch.tokens, flat.tokens)  # completions are those of Flat
  np.testing.assert_array_equal(rollouts.reward, same.reward)
  assert batch.unit_mask.shape[1] == 1 + -(-4 // interval)
  some = 0
  for row in range(N * G):
    begins = cuts(batch, row, plan)
    some += len(begins) > 1
    trained = np.flatnonzero(batch.mask[row])
    expected = [sum(b <= t for b in begins) for t in trained]
    np.testing.assert_array_equal(np.asarray(batch.unit)[row, trained], expected)
    there = np.isin(np.arange(batch.unit_mask.shape[1]), expected)
    np.testing.assert_array_equal(batch.unit_mask[row] > 0, there)
    valued = ~np.isnan(np.asarray(batch.unit_reward)[row])
    np.testing.assert_array_equal(valued, there & (np.arange(len(there)) > 0))
    np.testing.assert_array_equal(batch.owner[row], row)
  assert some > 2


def test_values_are_those_of_all_continuations_within_their_standard_error():
  problems, plan, (_, batch, took), _ = played(1)
  world, config, params = every_prefix.small()
  worst, seen, tokens, variance = 0.0, {}, 0.0, 0.0
  for n in range(N):
    table = every_prefix.Table(world, jax.tree.map(lambda x, n=n: x[n], problems))
    logp, reward = table.logp(config, params), table.reward()
    mean = table.expect(logp, reward.get)
    square = table.expect(logp, lambda a, reward=reward: reward[a] ** 2)
    length = table.expect(logp, len)
    length2 = table.expect(logp, lambda a: len(a) ** 2)
    for row in range(n * G, (n + 1) * G):
      for k, begin in enumerate(cuts(batch, row, plan), start=1):
        prefix = tuple(np.asarray(batch.tokens)[row, :begin].tolist())
        found = float(batch.unit_reward[row, k])
        if (n, prefix) in seen:  # estimated once
          assert found == seen[n, prefix]
          continue
        seen[n, prefix] = found
        variance_of = max(square[prefix] - mean[prefix] ** 2, 1e-9)
        error = np.sqrt(variance_of / SAMPLES)
        assert error < 0.03
        worst = max(worst, abs(found - mean[prefix]) / error)
        tokens += SAMPLES * (length[prefix] - begin)
        variance += SAMPLES * (length2[prefix] - length[prefix] ** 2)
  assert len(seen) > 8 and worst < 3.5
  assert abs(float(took) - tokens) < 4 * np.sqrt(variance)
  spread = np.std(list(seen.values()))
  assert spread > 0.05  # else any number near the mean would pass


def test_what_a_chain_cannot_do_is_refused():
  with pytest.raises(UserError, match="world key_door has turns"):
    chain.check(Chain(), plans.Where("fused", "world key_door", 8, turns=True))
  with pytest.raises(UserError, match="interval=0"):
    chain.check(Chain(interval=0), plans.Where("fused", "world chain", 8))
