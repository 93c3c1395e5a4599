"""Contexts from learning histories: of the right task, contiguous, labelled as the papers say."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import t2mir
from experiments import train
from grpo_jax.data import tfds_history_source
from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.rollout.in_context.tokens import Layout
from grpo_jax.train import in_context as in_context_loop
from grpo_jax.train.programs import in_context_data, in_context_histories

ROOM = contextual.get("darkroom", n=3, horizon=4, steps=8, start="center")
PLAN = in_context_histories.Sizes(learners=2, episodes=5)


@pytest.fixture(scope="module")
def kept():
  return in_context_histories.obtain(ROOM, 8, PLAN)


def test_histories_are_of_every_training_task_and_follow_its_rules(kept):
  goals = np.asarray(ROOM.train.goal)
  np.testing.assert_array_equal(kept.tasks["goal"], goals)
  s = kept.steps
  assert s.reward.shape == (len(goals), 2, 20)
  hit = (np.asarray(s.next_state) == goals[:, None, None]).all(axis=-1)
  np.testing.assert_array_equal(s.reward, hit.astype(np.float32))
  inside = np.arange(20) % 4 != 3
  np.testing.assert_array_equal(s.next_state[:, :, :-1][:, :, inside[:-1]],
                                s.state[:, :, 1:][:, :, inside[:-1]])  # fmt: skip
  assert (s.state[:, :, ::4] == 1).all()  # every episode begins in the middle
  assert len({s.action[i, j].tobytes() for i in range(len(goals)) for j in range(2)}) > 10


def test_a_context_is_a_window_of_a_history_of_its_own_task(kept):
  found = in_context_histories.source(kept)
  count = len(kept.steps.reward)
  which = np.tile(np.arange(count), 6)
  tasks = jax.tree.map(lambda x: jnp.asarray(x)[which], ROOM.train)
  keys = jax.random.split(jax.random.key(0), len(which))
  data = jax.jit(lambda t, k: found(t, k, 8))(tasks, keys)
  rows = [np.asarray(x, np.float32).reshape(*x.shape[:2], -1) for x in vars(data).values()]
  seen = np.concatenate(rows, axis=2)
  parts = [np.asarray(x, np.float32) for x in vars(kept.steps).values()]
  whole = np.concatenate([x.reshape(*x.shape[:3], -1) for x in parts], axis=3)
  places = set()
  for row, task in enumerate(which):
    at = [
      (j, f)
      for j in range(2)
      for f in range(20 - 8 + 1)
      if (whole[task, j, f : f + 8] == seen[row]).all()
    ]
    assert at
    places.add(at[0])
  assert len({j for j, _ in places}) == 2 and len({f for _, f in places}) > 6


def test_a_context_of_episodes_has_whole_ones_in_ascending_order_without_repeats(kept):
  paid = np.random.default_rng(0).normal(size=kept.steps.reward.shape).astype(np.float32)
  kept = kept.replace(steps=kept.steps.replace(reward=paid))  # so that no two episodes are alike
  found = in_context_histories.source(kept, 4)
  count = len(paid)
  which = np.tile(np.arange(count), 6)
  tasks = jax.tree.map(lambda x: jnp.asarray(x)[which], ROOM.train)
  keys = jax.random.split(jax.random.key(0), len(which))
  data = jax.jit(lambda t, k: found(t, k, 12))(tasks, keys)
  stick = lambda steps, n: np.concatenate(
    [np.asarray(x, np.float32).reshape(*x.shape[:n], -1) for x in vars(steps).values()], axis=n
  )
  seen = stick(data, 2).reshape(len(which), 3, 4, -1)
  whole = stick(kept.steps, 3).reshape(count, 2, 5, 4, -1)
  places = set()
  for row, task in enumerate(which):
    of = [
      {e for e in range(5) for part in seen[row] if (whole[task, j, e] == part).all()}
      for j in range(2)
    ]
    assert max(len(found) for found in of) == 3
    places.add((len(of[0]) == 3, tuple(sorted(max(of, key=len)))))
    returns = np.asarray(data.reward)[row].reshape(3, 4).sum(axis=1)
    assert (np.diff(returns) >= 0).all()
  assert {learner for learner, _ in places} == {True, False} and len(places) > 8


def test_continuous_histories_are_of_soft_actor_critic_and_split_as_the_family_is():
  points = contextual.get("point_robot", goals=5, horizon=4, steps=8)
  plan = in_context_histories.plan_of(
    {"episodes": 3, "learners": 2, "sac": {"batch": 4, "hidden": [8], "warmup": 1}}
  )
  says = []
  train, held = in_context_histories.both(points, 8, plan, says.append)
  for histories, tasks in ((train, points.train), (held, points.heldout)):
    np.testing.assert_array_equal(histories.tasks["goal"], tasks.goal)
    s = histories.steps
    assert s.reward.shape == (len(tasks.goal), 2, 12)
    want = -np.linalg.norm(s.next_state - tasks.goal[:, None, None], axis=-1)
    np.testing.assert_allclose(s.reward, want, atol=1e-5)
    assert len({x.tobytes() for x in s.action.reshape(-1, 24)}) == 2 * len(tasks.goal)
  assert len(says) == 3
  made = in_context_histories.progress(train, 4, parts=2)
  returns = train.steps.reward.reshape(-1, 2, 3, 4).sum(axis=3).mean(axis=1)
  np.testing.assert_allclose(made[:, 0], returns[:, :2].mean(axis=1), rtol=1e-5)
  np.testing.assert_allclose(made[:, 1], returns[:, 2], rtol=1e-5)


def test_the_label_of_a_history_is_the_action_that_was_taken_and_of_dpt_the_optimal_one(kept):
  source = in_context_histories.source(kept)
  for kind in ("history", "split"):
    layout = Layout(ROOM, 8, kind)
    draw = jax.jit(lambda key, at=layout: in_context_data.draw(at, key, 12, source=source))
    _, batch = draw(jax.random.key(1))
    x, label = np.asarray(batch.extra["x"]), np.asarray(batch.tokens)[:, layout.reads]
    acted = x[:, layout.part == 1][:, -8:, :5].argmax(axis=2)
    if kind == "history":
      np.testing.assert_array_equal(label, acted)
      assert batch.mask.sum() == 12 * 8
    else:
      assert (label == label[:, :1]).all() and batch.mask.sum() == 12 * 9
      told = [r for r in range(12) if x[r, 3::3, 0].max() > 0]
      for row in told:
        first = 3 * int(np.argmax(x[row, 3::3, 0] > 0))  # tokens before the step that was paid
        cell, way = x[row, first + 1, :2], acted[row, first // 3]
        moves = np.asarray([(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)])
        dx, dy = np.clip(cell + moves[way], 0, 2) - x[row, 0, :2]
        want = (0 if dx > 0 else 1) if dx else (2 if dy > 0 else 3) if dy else 4
        assert label[row, 0] == want
      assert len(told) > 3


def test_what_does_not_fit_is_one_clear_line(kept, tmp_path):
  with pytest.raises(UserError, match="data.steps=24: histories have 20 steps"):
    in_context_histories.obtain(ROOM, 24, PLAN)
  with pytest.raises(UserError, match="bandit has no list of tasks"):
    in_context_histories.obtain(contextual.get("bandit"), 4, PLAN)
  with pytest.raises(UserError, match="episodes=0: must be at least 1"):
    in_context_histories.plan_of({"episodes": 0})
  with pytest.raises(UserError, match=r"histories.episdes: unknown; use one of path"):
    in_context_histories.plan_of({"episdes": 3})
  with pytest.raises(UserError, match=r"histories.sac.bach: unknown; use one of lr"):
    in_context_histories.plan_of({"sac": {"bach": 3}})
  with pytest.raises(UserError, match="give two numbers from 0 to 1"):
    in_context_histories.plan_of({"epsilon": [1.0]})
  pytest.importorskip("tensorflow_datasets")
  path = tfds_history_source.write(str(tmp_path), {"train": kept})
  again = in_context_histories.obtain(ROOM, 8, dataclasses.replace(PLAN, path=path))
  for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)
  other = contextual.get("darkroom", n=4, horizon=4, steps=8)
  with pytest.raises(UserError, match="made for other tasks than darkroom's"):
    in_context_histories.obtain(other, 8, dataclasses.replace(PLAN, path=path))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("data.steps=4", "must be a multiple of the horizon of darkroom, 4, and at least twice"),
    ("data.histories.episodes=1", "histories have 4 steps; use more episodes"),
  ],
)
def test_a_bad_value_is_one_line_and_exit_code_2(capsys, tmp_path, change, message):
  flags = ["--config=configs/t2mir.py:ad,debug", f"--config.{change}", f"--workdir={tmp_path}/run"]
  assert train.main(flags) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_run_of_algorithm_distillation_leaves_marks_and_a_page(tmp_path):
  c = t2mir.get_config("ad,debug")
  final = in_context_loop.run(c, tmp_path / "a", lambda _: None)
  assert {"return", "right", "best"} <= set(final) and "offline" not in final
  last = json.loads((tmp_path / "a/exam/step_000004.json").read_text())
  assert np.shape(last["curves"]["return"]) == (2, 2)
  assert "<svg" in (tmp_path / "a/report.html").read_text()
