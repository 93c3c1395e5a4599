"""In-context learners at work, against plain loops that read every context anew."""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from grpo_jax.core.bandit_counts import Counts
from grpo_jax.core.transitions import Transitions
from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.models.in_context import transformer as model
from grpo_jax.rollout.in_context import oracles as bandit_oracles
from grpo_jax.rollout.in_context import play as in_context
from grpo_jax.rollout.in_context.tokens import Layout, empty
from grpo_jax.tabular.posterior import best_arm_bernoulli, total_variation
from grpo_jax.train.programs.in_context import make_config

BANDIT = contextual.get("bandit", arms=3, steps=6)
ROOM = contextual.get("darkroom", n=3, horizon=2, steps=4)


def loud(layout, seed=0):
  """(config, params) of a small model whose outputs depend strongly on what it reads."""
  config = make_config(layout, hidden=8, layers=2)
  params = jax.jit(functools.partial(model.init, config))(jax.random.key(seed))
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: (np.asarray(x) + 0.7 * rng.normal(size=x.shape)).astype(np.float32), params
  )
  params["head"]["b"] *= 0  # no action is the favourite whatever is read
  return config, params


def reader(layout, config):
  """(params, query, data) -> what the model answers after every prefix, in one program."""
  return jax.jit(functools.partial(in_context.answers, layout, config))


def some(family, steps, count):
  """Tasks and contexts [count, steps]."""

  def one(key):
    task = family.task(key)
    return task, family.behave(task, key, steps)

  return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count))


def test_tokens_hold_each_part_where_the_layout_says():
  data = Transitions(
    state=jnp.asarray([[1.0, 2], [3, 4]]),
    action=jnp.asarray([4, 0]),
    next_state=jnp.asarray([[5.0, 6], [7, 8]]),
    reward=jnp.asarray([0.5, 1]),
  )
  query = jnp.asarray([9.0, 10])
  whole = Layout(ROOM, 2)
  np.testing.assert_array_equal(
    whole.encode(query, data),
    [
      [9, 10, 0, 0, 0, 0, 0, 0, 0, 0],
      [1, 2, 0, 0, 0, 0, 1, 5, 6, 0.5],
      [3, 4, 1, 0, 0, 0, 0, 7, 8, 1],
    ],
  )
  rows = [[1, 2, 0, 0, 0], [0, 0, 0, 0, 1], [0.5, 0, 0, 0, 0]]
  rows += [[3, 4, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
  history = Layout(ROOM, 2, "history")
  np.testing.assert_array_equal(history.encode(query, data), rows)
  split = Layout(ROOM, 2, "split")
  np.testing.assert_array_equal(split.encode(query, data), [[9, 10, 0, 0, 0], *rows])
  for layout, reads, position, part in (
    (whole, [0, 1, 2], [0, 1, 2], [0, 0, 0]),
    (split, [0, 1, 4], [0, 1, 1, 1, 2, 2, 2], [0, 0, 1, 2, 0, 1, 2]),
    (history, [0, 3], [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]),
  ):
    assert (layout.length, layout.width) == layout.encode(query, data).shape
    np.testing.assert_array_equal(layout.reads, reads)
    np.testing.assert_array_equal(layout.position, position)
    np.testing.assert_array_equal(layout.part, part)


def test_pulls_through_the_cache_are_those_of_reading_the_whole_context_anew():
  layout = Layout(BANDIT, 6)
  config, params = loud(layout)
  tasks, _ = some(BANDIT, 6, 4)
  pull = jax.jit(functools.partial(in_context.play_bandit, layout, config, steps=6, greedy=True))
  pulls = pull(params, tasks, jax.random.key(1))
  ones = jnp.ones((4, 6, 1))
  data = Transitions(state=ones, action=pulls.action, next_state=ones, reward=pulls.reward)
  out = np.asarray(reader(layout, config)(params, ones[:, 0], data))[:, :6]
  np.testing.assert_array_equal(pulls.action, out.argmax(axis=-1))
  p = np.exp(out - out.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  np.testing.assert_allclose(pulls.entropy, -(p * np.log(p)).sum(-1), rtol=1e-4, atol=1e-5)
  mean = np.asarray(tasks.mean)
  lost = mean.max(1, keepdims=True) - np.take_along_axis(mean, np.asarray(pulls.action), 1)
  np.testing.assert_allclose(pulls.suboptimality, lost, atol=1e-6)
  assert np.abs(np.asarray(pulls.reward) - np.take_along_axis(mean, pulls.action, 1)).max() > 0.1


@pytest.mark.parametrize("begin", [False, True], ids=["from nothing", "from data"])
@pytest.mark.parametrize("kind", ["transition", "split"])
def test_an_episode_s_actions_see_earlier_episodes_only_and_the_oldest_leave(kind, begin):
  layout = Layout(ROOM, 4, kind)
  config, params = loud(layout)
  tasks, given = jax.tree.map(np.asarray, some(ROOM, 4, 5))
  play = functools.partial(in_context.play, layout, config, episodes=4, greedy=True)
  played = jax.jit(play)(params, tasks, jax.random.key(0), data=given if begin else None)
  read_all = functools.partial(reader(layout, config), params)
  actions = collections.Counter()
  start = jax.jit(lambda task: ROOM.start(task, jax.random.key(0)))
  see = jax.jit(lambda state: ROOM.observe(state))
  go = jax.jit(
    lambda task, state, action: (
      *ROOM.step(task, state, action, jax.random.key(0)),
      ROOM.label(task, state) == action,
    )
  )
  for i in range(5):
    task = jax.tree.map(lambda x, i=i: np.asarray(x)[i], tasks)
    memory = [jax.tree.map(lambda x, i=i, j=j: x[i, j], given) for j in range(4 * begin)]
    for episode in range(4):
      rows = memory[-4:]  # two episodes of two steps fill the context
      blank = jax.tree.map(lambda x: np.asarray(x)[0], empty(ROOM, 1))
      filled = rows + [blank] * (4 - len(rows))
      data = jax.tree.map(lambda *x: np.stack(x)[None], *filled)
      state, new = start(task), []
      for t in range(2):
        seen = np.asarray(see(state))
        out = np.asarray(read_all(seen[None], data))[0, len(rows)]
        action = np.int32(out.argmax())
        after, reward, right = go(task, state, action)
        assert float(reward) == float(played.reward[i, episode, t])
        assert bool(played.right[i, episode, t]) == bool(right)
        actions[int(action)] += len(rows) > 0
        one = Transitions(state=seen, action=action, next_state=see(after), reward=reward)
        new.append(jax.tree.map(np.asarray, one))
        state = after
      memory += new
  assert len(+actions) > begin  # what is read makes a difference


def test_a_frozen_policy_is_the_same_function_all_through_an_episode():
  """Two tasks that pay differently and know nothing yet get the same actions, step for step."""
  layout = Layout(ROOM, 4)
  config, params = loud(layout)
  _, data = some(ROOM, 4, 2)
  none = jax.tree.map(lambda x: x[:, :0], data)
  seen = jnp.zeros((2, 2))
  act = lambda seen, key: in_context.frozen(layout, config, params, none, True)(seen, key)
  early = jax.jit(act)(seen, jax.random.key(0))
  assert int(early[0]) == int(early[1])
  out = reader(layout, config)(params, seen, data)
  assert np.abs(out[0, -1] - out[1, -1]).max() > 1e-3  # and different contexts do make a difference


def test_offline_marks_are_those_of_one_context_at_a_time():
  layout = Layout(BANDIT, 6)
  config, params = loud(layout)
  tasks, data = some(BANDIT, 6, 3)
  states = jnp.ones((3, 1))
  marks = jax.jit(functools.partial(in_context.with_given_data, layout, config))(
    params, tasks, states, data
  )
  read = jax.jit(lambda data: model.apply(config, params, layout.encode(jnp.ones(1), data)[None]))
  for i, n in itertools.product(range(3), (0, 4)):
    short = jax.tree.map(lambda x, i=i, n=n: np.asarray(x)[i, :n], data)
    arm = int(np.argmax(read(short).outputs[0, -1]))
    mean = np.asarray(tasks.mean[i])
    assert float(marks[i, n]) == pytest.approx(mean.max() - mean[arm], abs=1e-6)


def test_permuting_arms_in_data_permutes_the_answers_of_a_symmetrised_model():
  layout = Layout(BANDIT, 4)
  config, params = loud(layout)
  _, data = some(BANDIT, 4, 2)
  orders = [np.asarray(p) for p in itertools.permutations(range(3))]

  read = reader(layout, config)

  def symmetrised(action):
    total = 0.0
    for p in orders:  # arm a is called p[a]; its answer stands at p[a]
      out = read(params, jnp.ones((2, 1)), data.replace(action=p.astype(np.int32)[action]))
      total = total + np.asarray(out, np.float64)[..., p]
    return total

  plain = symmetrised(np.asarray(data.action))
  for p in orders[1:]:
    renamed = symmetrised(p.astype(np.int32)[np.asarray(data.action)])
    np.testing.assert_allclose(renamed[..., p], plain, atol=1e-4)
  assert np.ptp(plain, axis=-1).max() > 0.1


def test_the_posterior_of_the_best_bernoulli_arm_is_the_integral():
  total = np.asarray([[0, 0, 0], [3, 1, 0], [40, 30, 2], [1, 0, 0]], np.float32)
  count = np.asarray([[0, 0, 0], [4, 1, 2], [60, 40, 3], [1, 0, 9]], np.float32)
  counts = Counts(count=jnp.asarray(count), total=jnp.asarray(total))
  found = np.asarray(jax.jit(best_arm_bernoulli)(counts))
  for row, n, s in zip(found, count, total, strict=True):
    beta = [stats.beta(1 + a, 1 + b - a) for a, b in zip(s, n, strict=True)]
    for i in range(3):
      inside = lambda x, i=i, beta=beta: (
        beta[i].pdf(x) * np.prod([beta[j].cdf(x) for j in range(3) if j != i])
      )
      assert row[i] == pytest.approx(integrate.quad(inside, 0, 1, limit=200)[0], abs=1e-4)
  np.testing.assert_allclose(found[0], 1 / 3, atol=1e-5)
  assert float(total_variation(jnp.asarray([0.5, 0.5]), jnp.asarray([1.0, 0.0]))) == 0.5


def test_oracles_are_chosen_by_the_family_and_thompson_beats_chance():
  arms = contextual.get("bandit", arms=3, steps=30, reward="bernoulli")
  linear = contextual.get("linear_bandit", arms=4, steps=5)
  assert {"linucb", "thompson_linear", "thompson"} <= set(bandit_oracles.learners(linear, {}))
  tasks, data = some(arms, 30, 64)
  params = {"reward": "bernoulli"}
  found = jax.jit(lambda t, k: bandit_oracles.online(arms, params, t, k, 30))(
    tasks, jax.random.key(0)
  )
  mean = np.asarray(tasks.mean)
  chance = (mean.max(1) - mean.mean(1)).mean()
  assert found["thompson"][:, -10:].mean() < 0.6 * chance
  known = jax.eval_shape(lambda data: bandit_oracles.posterior(arms, params, data), data)
  assert known.shape == (64, 31, 3)
  assert bandit_oracles.posterior(BANDIT, {}, data) is None


def test_what_cannot_be_is_refused_in_one_line():
  layout = Layout(BANDIT, 6)
  config, params = loud(layout)
  tasks, _ = some(BANDIT, 6, 1)
  key = jax.random.key(0)
  with pytest.raises(UserError, match="steps=7: the context has room for 6"):
    in_context.play_bandit(layout, config, params, tasks, key, 7)
  room = Layout(ROOM, 3)
  with pytest.raises(UserError, match="has several states"):
    in_context.play_bandit(room, config, params, tasks, key, 2)
  with pytest.raises(UserError, match="data.steps=3: must be a multiple of the horizon"):
    in_context.play(room, config, params, ROOM.heldout, key, 1)
  with pytest.raises(UserError, match="tokens='pair': use one of transition, split, history"):
    Layout(ROOM, 4, "pair")
  with pytest.raises(UserError, match=r"data\.steps=0: must be at least 1"):
    dataclasses.replace(room, steps=0)


@pytest.mark.parametrize("name", ["darkroom", "point_robot"])
def test_an_explored_episode_is_one_of_uniform_actions_in_the_task_itself(name):
  family = contextual.get(name, horizon=5, steps=5)
  tasks = jax.vmap(family.task)(jax.random.split(jax.random.key(0), 400))
  data = jax.jit(functools.partial(in_context.explored, family))(tasks, jax.random.key(1))
  assert data.reward.shape == (400, 5)
  np.testing.assert_array_equal(data.state[:, 1:], data.next_state[:, :-1])
  kind = jax.eval_shape(family.start, jax.tree.map(lambda x: x[0], tasks), jax.random.key(0)).dtype
  state = data.state.astype(kind)  # what is seen here is the state itself
  want = jax.vmap(jax.vmap(family.mean, (None, 0, 0)))(tasks, state, data.action)
  np.testing.assert_allclose(data.reward, want, atol=1e-6)
  if family.continuous:
    assert np.abs(data.action).max() <= 1
    assert stats.kstest(np.ravel(data.action), "uniform", (-1, 2)).pvalue > 1e-3
  else:
    counts = np.bincount(np.ravel(data.action), minlength=family.actions)
    assert stats.chisquare(counts).pvalue > 1e-3
