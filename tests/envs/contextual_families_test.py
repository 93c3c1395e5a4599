"""What every family of control problems must do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.core.transitions import Transitions
from grpo_jax.envs import contextual
from grpo_jax.errors import UserError

FAMILIES = {
  "bandit": {},
  "linear_bandit": {},
  "contextual_bandit": {},
  "darkroom": {"n": 5, "horizon": 12},
  "key_to_door": {"n": 4, "horizon": 12},
  "point_robot": {},
}
TASKS, STEPS = 6, 40

every_family = pytest.mark.parametrize("name", FAMILIES)


@functools.cache
def some(name):
  """(family, what it does with TASKS tasks, by name): numpy arrays with the task first."""
  family = contextual.get(name, **FAMILIES[name])

  @jax.jit
  @jax.vmap
  def do(key):
    task = family.task(key)
    state = family.query(task, key)
    label = family.label(task, state)
    after, reward = family.step(task, state, label, key)
    again = jax.random.fold_in(key, 0)
    return {
      "task": task,
      "state": state,
      "label": label,
      "after": after,
      "reward": reward,
      "mean": family.mean(task, state, label),
      "best": family.best(task),
      "seen": family.observe(family.start(task, key)),
      "context": family.behave(task, key, STEPS),
      "same": family.behave(family.task(key), key, STEPS),
      "other": family.behave(task, again, STEPS),
    }

  return family, jax.tree.map(np.asarray, do(jax.random.split(jax.random.key(3), TASKS)))


def test_all_families_are_found_by_name():
  assert set(FAMILIES) <= set(contextual.names())


@every_family
def test_sizes_and_dtypes_are_those_of_the_contract(name):
  family, did = some(name)
  made, label, shape = did["context"], did["label"], (TASKS, STEPS)
  assert family.name == name and isinstance(made, Transitions)
  assert made.state.shape == made.next_state.shape == (*shape, family.observation)
  assert made.state.dtype == made.next_state.dtype == made.reward.dtype == np.float32
  assert made.reward.shape == shape
  if family.continuous:
    assert made.action.shape == (*shape, family.actions) and made.action.dtype == np.float32
    assert label.shape == (TASKS, family.actions) and label.dtype == np.float32
  else:
    assert made.action.shape == shape and made.action.dtype == np.int32
    assert made.action.min() >= 0 and made.action.max() == family.actions - 1
    assert label.shape == (TASKS,) and label.dtype == np.int32
  form = lambda state: jax.tree.map(lambda x: (x.shape, x.dtype), state)
  assert form(did["after"]) == form(did["state"])
  for key in ("reward", "mean", "best"):
    assert did[key].shape == (TASKS,) and did[key].dtype == np.float32
  assert did["seen"].shape == (TASKS, family.observation) and did["seen"].dtype == np.float32


@every_family
def test_equal_keys_give_equal_contexts_and_other_keys_other_ones(name):
  _, did = some(name)
  jax.tree.map(np.testing.assert_array_equal, did["context"], did["same"])
  assert not np.array_equal(did["context"].action, did["other"].action)


@every_family
def test_following_the_labels_earns_the_best_return(name):
  family, did = some(name)
  task = jax.tree.map(lambda x: jnp.asarray(x[0]), did["task"])

  def episode(key):
    start, go = jax.random.split(key)

    def one(state, key):
      action = family.label(task, state)
      return family.step(task, state, action, key)[0], family.mean(task, state, action)

    keys = jax.random.split(go, family.horizon)
    return jnp.sum(jax.lax.scan(one, family.start(task, start), keys)[1])

  returns = np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(5), 2000)))
  error = max(4 * returns.std() / len(returns) ** 0.5, 1e-4)
  assert abs(returns.mean() - did["best"][0]) < error


@every_family
def test_heldout_tasks_have_the_form_of_drawn_ones(name):
  family, did = some(name)
  if family.heldout is None:
    assert name in ("bandit", "linear_bandit", "contextual_bandit")
    return
  drawn, held = jax.tree.leaves(did["task"]), jax.tree.leaves(family.heldout)
  assert [(x.shape[1:], x.dtype) for x in drawn] == [(x.shape[1:], x.dtype) for x in held]
  assert jax.jit(jax.vmap(family.best))(family.heldout).shape == (len(held[0]),)


def test_unknown_names_and_parameters_are_refused_with_the_nearest():
  with pytest.raises(UserError, match="darkroom"):
    contextual.get("darkrom")
  with pytest.raises(UserError, match="family"):
    contextual.get("family")
  with pytest.raises(UserError, match="horizon"):
    contextual.get("darkroom", horizn=3)


@pytest.mark.parametrize(
  ("name", "given"),
  [
    ("bandit", {"arms": 0}),
    ("bandit", {"noise": -1.0}),
    ("bandit", {"reward": "poisson"}),
    ("bandit", {"means": "beta"}),
    ("bandit", {"reward": "bernoulli", "means": "normal"}),
    ("linear_bandit", {"dim": 0}),
    ("contextual_bandit", {"steps": 0}),
    ("contextual_bandit", {"ratings": np.ones((3, 3))}),
    ("darkroom", {"n": 1}),
    ("darkroom", {"start": "middle"}),
    ("key_to_door", {"horizon": 0}),
    ("key_to_door", {"start": "middle"}),
    ("point_robot", {"goals": 1}),
    ("point_robot", {"reach": 0.0}),
  ],
)
def test_values_out_of_range_are_refused_by_field(name, given):
  field = list(given)[-1]
  with pytest.raises(UserError, match=rf"^{name}\.{field}"):
    contextual.get(name, **given)
