"""Trees: who grows from whom, what is trained where, and the gradient against exact sums."""

import functools

import every_prefix
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods
from grpo_jax.envs.world import STOP
from grpo_jax.errors import UserError
from grpo_jax.models import policy
from grpo_jax.rollout import plans, tree
from grpo_jax.types import Tree

PLAN = Tree(branching=(3, 2, 2), segment_tokens=1)
N, T = 3, 4
WIDTH = (3, 6, 12)
FIRST = (0, 3, 9)


@functools.cache
def played():
  world, config, params = every_prefix.small()
  ids = jnp.arange(N)
  problems = world.problems(0, ids)
  keys = jax.random.split(jax.random.key(2), N)
  run = jax.jit(
    lambda params, *given: tree.play(PLAN, plans.Game(world, config, params, *given, 1, N))[:2]
  )
  return world, config, params, problems, *jax.device_get(run(params, problems, ids, keys))


def texts(batch):
  """(prompt, node) -> (all tokens down to the node, its own), from the row that trains it."""
  found = {}
  for row in range(len(batch.tokens)):
    for d in range(3):
      if batch.unit_mask[row, d]:
        own = np.flatnonzero((batch.mask[row] > 0) & (batch.unit[row] == d))
        node = int(batch.owner[row, d])
        assert node not in found  # a node is trained in one row
        assert own.size and (np.diff(own) == 1).all()
        found[node] = (
          tuple(batch.tokens[row, : own[-1] + 1].tolist()),
          tuple(batch.tokens[row, own].tolist()),
        )
  return {(node // PLAN.nodes, node % PLAN.nodes): v for node, v in found.items()}


def test_every_alive_node_is_trained_once_after_the_tokens_of_its_ancestors():
  *_, rollouts, batch = played()
  text = texts(batch)
  assert {(n, g) for n, g in zip(*np.nonzero(rollouts.alive), strict=True)} == set(text)
  assert 0 < (~rollouts.alive).sum() < rollouts.alive.size
  for n in range(N):
    for d in range(3):
      for i in range(WIDTH[d]):
        g, parent = FIRST[d] + i, -1 if d == 0 else FIRST[d - 1] + i // PLAN.branching[d]
        assert (rollouts.parent[n, g], rollouts.depth[n, g]) == (parent, d)
        above = () if parent < 0 else text.get((n, parent), (None,))[0]
        grows = above is not None and STOP not in above
        assert rollouts.alive[n, g] == grows
        if grows:
          whole, own = text[n, g]
          assert whole == above + own and len(own) == rollouts.length[n, g]
          assert len(own) == 1 if d < 2 else own[-1] == STOP or len(whole) == T
  siblings = {text[0, g][0] for g in range(3)}
  assert len(siblings) > 1  # they draw their own numbers


def test_nodes_that_end_have_the_verdict_on_their_path_and_others_none():
  world, _, _, problems, rollouts, batch = played()
  for (n, g), (path, _) in texts(batch).items():
    ended = STOP in path or rollouts.depth[n, g] == 2
    problem = jax.tree.map(lambda x, n=n: x[n], problems)
    tokens = jnp.asarray(path + (0,) * (T - len(path)), jnp.int32)
    verdict = world.score(problem, (), tokens, jnp.int32(len(path)))
    assert rollouts.reward[n, g] == pytest.approx(float(verdict.reward) if ended else 0)
    assert rollouts.correct[n, g] == (ended and verdict.correct)
    assert rollouts.truncated[n, g] == (ended and STOP not in path)
  ends = jax.device_get(tree.ends(rollouts))
  assert ends.sum() == sum(STOP in p or len(p) == T for p, _ in texts(batch).values())


def test_the_sampler_s_log_probabilities_are_the_trainer_s():
  _, config, params, _, _, batch = played()
  fwd = jax.jit(policy.make_forward(config, chunk=0))(params, batch)
  np.testing.assert_allclose(batch.logp_sampler, fwd.logp, atol=1e-5)


def test_what_is_watched_weighs_a_node_by_the_completions_through_it():
  *_, rollouts, batch = played()
  reach = tree.reach(PLAN, rollouts)
  ends = np.asarray(tree.ends(rollouts))
  np.testing.assert_allclose(np.where(ends, reach, 0).sum(1), 1, rtol=1e-6)
  reward = np.zeros(N)
  length = np.zeros(N)
  for (n, g), (path, _) in texts(batch).items():
    if ends[n, g]:
      reward[n] += rollouts.reward[n, g] / WIDTH[rollouts.depth[n, g]]
      length[n] += len(path) / WIDTH[rollouts.depth[n, g]]
  seen = plans.observe(rollouts, np.sum(batch.mask), reach, ends)
  assert float(seen["reward"]) == pytest.approx(reward.mean(), rel=1e-5)
  assert float(seen["length"]) == pytest.approx(length.mean(), rel=1e-5)


def test_the_gradient_of_spo_tree_is_the_exact_one_within_its_standard_error():
  """In expectation an edge of b siblings gives (1 - 1/b) E[R grad log p(its tokens)]."""
  world, config, params = every_prefix.small()
  plan = Tree(branching=(3, 2), segment_tokens=2)
  kept = {"cut": 2.0, "whiten": False, "drop_zero": False, "beta_kl": 0.0}
  method = methods.get(
    "spo_segment", form="tree", branching=plan.branching, segment_tokens=2, **kept
  )
  forward, trees, repeats = policy.make_forward(config, chunk=0), 8, 250
  ids = jnp.zeros(trees, jnp.int32)
  problems = world.problems(0, ids)

  def sampled(key):
    keys = jax.random.split(key, trees)
    game = plans.Game(world, config, params, problems, ids, keys, 1, trees)
    rollouts, batch, *_ = tree.play(plan, game)
    batch = batch.replace(logp_old=forward(params, batch).logp)
    credit = method.credit((), rollouts, batch)
    loss = lambda p: method.loss(forward(p, batch), batch, credit)[0]
    scale = jnp.sum(batch.mask) / trees  # undoes the mean over tokens, whose number is random
    return jax.tree.map(lambda g: -g * scale, jax.grad(loss)(params))

  every = jax.jit(lambda keys: jax.lax.map(sampled, keys))
  found = every(jax.random.split(jax.random.key(5), repeats))

  table = every_prefix.Table(world, jax.tree.map(lambda x: x[0], problems))
  reward = table.reward()
  answers = list(reward)
  at = np.full((len(answers), T), -1)
  for i, a in enumerate(answers):
    at[i, : len(a)] = [table.index[a[:t]] for t in range(len(a))]
  token = jnp.asarray([a + (0,) * (T - len(a)) for a in answers], jnp.int32)
  share = jnp.asarray([2 / 3 * 3] * 2 + [1 / 2 * 6] * 2)  # nodes of the depth (1 - 1/b)

  @jax.jit
  def exact(params):
    def objective(p):
      logp = table.logp(config, p)[jnp.maximum(at, 0), token]
      logp = jnp.where(jnp.asarray(at >= 0), logp, 0)
      chance = jax.lax.stop_gradient(jnp.exp(jnp.sum(logp, axis=1)))
      return jnp.sum(chance * jnp.asarray(list(reward.values())) * (logp @ share))

    return jax.grad(objective)(params)

  flat = lambda x: np.concatenate([np.asarray(a).reshape(-1) for a in jax.tree.leaves(x)])
  true = flat(exact(params))
  rows = np.stack([flat(jax.tree.map(lambda x, i=i: x[i], found)) for i in range(repeats)])
  directions = np.random.default_rng(0).normal(size=(true.size, 30))
  directions[:, 0] = true
  seen, want = rows @ directions, true @ directions
  z = (seen.mean(0) - want) / (seen.std(0, ddof=1) / np.sqrt(repeats))
  assert np.abs(z).max() < 4
  assert want[0] > 10 * seen[:, 0].std(ddof=1) / np.sqrt(repeats)  # a wrong factor would show


def test_what_a_tree_cannot_do_is_refused():
  with pytest.raises(UserError, match="world key_door has turns"):
    tree.check(Tree(), plans.Where("fused", "world key_door", 8, turns=True))
  with pytest.raises(UserError, match="leaves the last one nothing of the 7 tokens"):
    tree.check(Tree(branching=(2, 2), segment_tokens=7), plans.Where("fused", "world chain", 7))
  with pytest.raises(UserError, match="give numbers from 1"):
    tree.check(Tree(branching=(2, 0), segment_tokens=1), plans.Where("fused", "world chain", 7))
