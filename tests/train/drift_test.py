"""Drift: the policy's move on the completion that a prompt had at its last visit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import envs, methods
from grpo_jax.models import decoder, policy
from grpo_jax.rollout import drift, play
from grpo_jax.train import supply
from grpo_jax.train.programs import fused
from grpo_jax.types import TrainState

WORLD = envs.get("chain", steps=1)
CONFIG = fused.tiny_config(WORLD.vocab, hidden=16, layers=1, heads=2)
FORWARD = policy.make_forward(CONFIG, chunk=0)
Q = 5


def params(seed):
  made = decoder.init(CONFIG, jax.random.key(seed))
  made["head"] = made["head"] * 20
  return made


def visit(method, state, ids, seed):
  """The state after the visit of these prompts, as if an update had made its parameters."""
  ids = jnp.asarray(ids)
  problems = WORLD.problems(0, ids)
  keys = jax.random.split(jax.random.key(seed), len(ids))
  rollouts, batch = play.play(WORLD, CONFIG, params(0), problems, ids, keys, group=2)
  wide = lambda x: jnp.pad(x, ((0, 0), (0, 1)))  # a store may be wider than a batch
  assert WORLD.answer + 1 == state.store["drift"].tokens.shape[1]
  memory, store, _ = jax.jit(functools.partial(supply.remember, method, FORWARD))(
    state, rollouts, batch, {}
  )
  after = functools.partial(drift.after, FORWARD)
  moved, _ = jax.jit(after)(state.params, state.store["drift"], rollouts, batch)
  batch = batch.replace(tokens=wide(batch.tokens), mask=wide(batch.mask))
  return batch, state.replace(method_state=memory, store=store), moved


def begin(method):
  return TrainState(
    params=params(1),
    opt_state=(),
    method_state=method.init(Q),
    step=jnp.int32(1),
    store=supply.first_store(method, Q, WORLD.answer + 1),
  )


def naive_logp(weights, problem, tokens):
  row = [*np.asarray(problem.tokens).tolist(), *tokens]
  z = decoder.logits(CONFIG, weights, jnp.asarray([row]), jnp.asarray([len(row)]))[0]
  logp = np.asarray(jax.nn.log_softmax(z, axis=1))
  first = len(row) - len(tokens)
  return np.asarray([logp[first - 1 + t, a] for t, a in enumerate(tokens)])


def test_drift_is_the_mean_move_on_the_first_completion_of_the_last_visit():
  method = methods.get("spo_single_stream")
  batch, state, moved = visit(method, begin(method), [3, 1], seed=0)
  np.testing.assert_array_equal(moved, [0, 0])  # first visits
  state = state.replace(params=params(2))
  _, state, moved = visit(method, state, [0, 3], seed=1)
  assert moved[0] == 0
  size = int(np.sum(batch.mask[0]))
  tokens = np.asarray(batch.tokens)[0, :size].tolist()
  problem = jax.tree.map(lambda x: x[0], WORLD.problems(0, jnp.asarray([3])))
  then, now = (naive_logp(params(s), problem, tokens) for s in (1, 2))
  assert np.isclose(float(moved[1]), np.mean(np.abs(then - now)), atol=1e-5)
  assert float(moved[1]) > 0.05


def test_a_method_s_own_state_and_weights_are_what_they_would_be_with_that_drift():
  method = methods.get("spo_single_stream")
  batch, after, _ = visit(method, begin(method), [3, 1], seed=0)
  own, past = after.method_state, after.store["drift"]
  np.testing.assert_array_equal(np.sum(past.mask, axis=1) > 0, [False, True, False, True, False])
  np.testing.assert_array_equal(past.tokens[3], batch.tokens[0])
  np.testing.assert_allclose(own.count, [1, 0.96 + 2, 1, 0.96 + 2, 1], rtol=1e-6)  # drift 0
