"""In-context pretraining: what a batch is, what a step does, and a run that stops and goes on."""

import collections
import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dpt, t2mir
from experiments import train
from experiments.common import cli
from grpo_jax import methods
from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.models.moe.layer import MoEConfig
from grpo_jax.rollout.in_context import play as rollout
from grpo_jax.rollout.in_context.tokens import Layout
from grpo_jax.train import in_context as in_context_loop
from grpo_jax.train.programs import in_context, in_context_data
from grpo_jax.train.programs.seeds import over_seeds
from grpo_jax.types import Fwd

BANDIT = contextual.get("bandit", arms=3, steps=4)
ROOM = contextual.get("darkroom", n=3, horizon=2, steps=4)
POINT = contextual.get("point_robot", horizon=2, steps=2)


def told(family):
  """The family with contexts whose states are the task itself: what a row is of can be read."""
  plain = family.behave

  def behave(task, key, steps):
    data = plain(task, key, steps)
    goal = jnp.broadcast_to(task.goal.astype(jnp.float32)[None], data.state.shape)
    return data.replace(state=goal)

  return dataclasses.replace(family, behave=behave)


def drawer(layout, size, **more):
  return jax.jit(lambda key: in_context_data.draw(layout, key, size, **more))


# ---- batches -------------------------------------------------------------------------------------


def test_a_batch_has_the_optimal_action_of_the_query_state_at_every_prefix():
  layout = Layout(told(ROOM), 4, "split")
  _, batch = drawer(layout, 16)(jax.random.key(0))
  x = np.asarray(batch.extra["x"])
  query, goal = x[:, 0, :2], x[:, 1, :2]
  reads = layout.reads
  assert (np.asarray(batch.mask)[:, reads] == 1).all() and batch.mask.sum() == 16 * 5
  for row in range(16):
    dx, dy = goal[row] - query[row]
    want = (0 if dx > 0 else 1) if dx else (2 if dy > 0 else 3) if dy else 4
    assert (np.asarray(batch.tokens)[row, reads] == want).all()
  assert len({tuple(g) for g in goal}) > 3


def test_pairs_are_two_contexts_of_one_task_and_the_tasks_of_a_half_differ():
  layout = Layout(told(ROOM), 4)  # seven training goals
  draw = drawer(layout, 14, pairs=True)
  for seed in range(5):
    _, batch = draw(jax.random.key(seed))
    x = np.asarray(batch.extra["x"])
    goal, rest = x[:, 1, :2], x[:, 1:, 2:]
    np.testing.assert_array_equal(goal[:7], goal[7:])
    assert len({tuple(g) for g in goal[:7]}) == 7
    assert not (rest[:7] == rest[7:]).all(axis=(1, 2)).any()


def test_too_few_tasks_are_repeated_only_after_all_have_come():
  found = jax.jit(lambda key: in_context_data.different(ROOM, key, 10))(jax.random.key(0))
  goals = [tuple(g) for g in np.asarray(found.goal)]
  assert len(goals) == 10 and len(set(goals[:7])) == 7


def test_contexts_are_shuffled_where_order_says_nothing_and_kept_where_it_does():
  counting = lambda task, key, steps: BANDIT.behave(task, key, steps).replace(
    reward=jnp.arange(steps, dtype=jnp.float32)
  )
  for shuffle in (True, False):
    family = dataclasses.replace(BANDIT, behave=counting, shuffle=shuffle)
    _, batch = drawer(Layout(family, 4), 32)(jax.random.key(0))
    reward = np.asarray(batch.extra["x"])[:, 1:, -1]
    assert (np.sort(reward, axis=1) == np.arange(4)[None]).all()
    assert (reward == np.arange(4)[None]).all() != shuffle


def test_counting_labels_by_context_approaches_the_posterior_over_two_tasks():
  """Paper 27's invariant: a table fitted to the data of DPT is P(best arm | D)."""
  means = np.asarray([[0.9, 0.2], [0.3, 0.6]])
  arms = contextual.get("bandit", arms=2, steps=2, reward="bernoulli")
  which = lambda key: jax.random.bernoulli(key).astype(jnp.int32)
  one = arms.task(jax.random.key(0))
  family = dataclasses.replace(
    arms, task=lambda key: one.replace(mean=jnp.asarray(means, jnp.float32)[which(key)])
  )
  _, batch = drawer(Layout(family, 2), 60_000)(jax.random.key(1))
  x, label = np.asarray(batch.extra["x"]), np.asarray(batch.tokens)
  table = collections.defaultdict(list)
  for row in range(len(x)):
    seen = [(int(t[1 + 1]), int(t[-1])) for t in x[row, 1:]]  # is it arm 1, was it paid
    for n in range(3):
      table[tuple(seen[:n])].append(label[row, n])
  assert len(table) == 1 + 4 + 16
  for seen, labels in table.items():
    likely = [np.prod([m[a] if r else 1 - m[a] for a, r in seen]) for m in means]
    p = likely[1] / sum(likely)  # arm 1 is best in the second task
    error = math.sqrt(p * (1 - p) / len(labels))
    assert abs(np.mean(labels) - p) < 4.5 * error


def test_uniform_predictions_cost_log_a_for_every_prefix():
  layout = Layout(BANDIT, 4)
  rollouts, batch = drawer(layout, 8)(jax.random.key(0))
  fwd = Fwd(logp=jnp.full(batch.tokens.shape, -math.log(3)))
  for skip, prefixes in ((0, 5), (1, 4)):
    method = methods.get("dpt", skip=skip)
    loss, _ = method.loss(fwd, batch, method.credit((), rollouts, batch))
    assert float(loss) == pytest.approx(prefixes * math.log(3), rel=1e-6)


def test_continuous_labels_are_learnt_by_the_squared_error_of_tanh():
  layout = Layout(POINT, 2)
  _, batch = drawer(layout, 3)(jax.random.key(0))
  config = in_context.make_config(layout, hidden=8, layers=1)
  program = in_context.make_program(layout, methods.get("dpt"), config, in_context.Sizes())
  params = jax.jit(program.init)(0).params
  fwd = jax.jit(in_context.make_forward(layout, config, None))(params, batch)
  out = jax.jit(lambda p, x: in_context.model.apply(config, p, x).outputs)(params, batch.extra["x"])
  error = np.tanh(np.asarray(out)) - np.asarray(batch.extra["label"])
  np.testing.assert_allclose(fwd.logp, -(error**2).sum(-1), rtol=1e-5, atol=1e-6)
  assert np.abs(batch.extra["label"]).max() > 0.1


# ---- steps ---------------------------------------------------------------------------------------

SMALL = in_context.Sizes(steps=2, batch=6, every=1, lr=1e-2, weight_decay=0.5, pairs=True)
MOE = MoEConfig(experts=2, task_experts=3, top_k=1, hidden=8)


def test_a_wide_start_changes_the_scale_of_matrices_and_nothing_else():
  layout = Layout(BANDIT, 4)
  config = in_context.make_config(layout, hidden=8, layers=2)
  make = lambda wide: in_context.make_program(
    layout, methods.get("dpt"), config, in_context.Sizes(wide=wide)
  )
  plain, wide = (jax.jit(make(w).init)(0).params for w in (False, True))
  found = {}
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(wide), strict=True
  ):
    a, b = np.asarray(a), np.asarray(b)
    if np.any(a != b):
      factor = float(b.flat[0] / a.flat[0])
      np.testing.assert_allclose(b, factor * a, rtol=1e-6)
      found[path[0].key, path[-1].key] = round(factor, 3)
  want = {("layers", k): 8 for k in ("qkv", "proj", "up", "down")}
  assert found == want | {("embed", "w"): 4}


@functools.cache
def routed():
  layout = Layout(ROOM, 4, "split")
  config = in_context.make_config(layout, hidden=8, layers=1, moe=MOE)
  return layout, config


def test_the_key_gate_follows_the_gate_once_after_every_optimizer_step():
  layout, config = routed()
  program = in_context.make_program(layout, methods.get("t2mir", gate_rate=0.25), config, SMALL)
  state = jax.jit(program.init)(0)
  slow = state.params["key_gate"]["0"]
  stretch = jax.jit(program.stretch)
  for _ in range(2):
    state, metrics = stretch(0, state)
    fast = state.params["layers"]["0"]["moe"]["task"]["gate"]
    slow = jax.tree.map(lambda s, f: 0.75 * np.asarray(s) + 0.25 * np.asarray(f), slow, fast)
    for a, b in zip(
      jax.tree.leaves(slow), jax.tree.leaves(state.params["key_gate"]["0"]), strict=True
    ):
      np.testing.assert_allclose(a, b, atol=1e-6)
  assert float(metrics["contrast"]) > 0 and float(metrics["balance"]) > 0
  assert np.abs(np.asarray(slow["w1"] - fast["w1"])).max() > 1e-4


def test_a_contrast_needs_pairs():
  layout, config = routed()
  plan = dataclasses.replace(SMALL, pairs=False)
  program = in_context.make_program(layout, methods.get("t2mir"), config, plan)
  _, metrics = jax.jit(program.stretch)(0, jax.jit(program.init)(0))
  assert "contrast" not in metrics and "balance" in metrics


def test_an_exam_that_explores_begins_with_a_context_and_one_that_does_not_with_none(monkeypatch):
  layout = Layout(contextual.get("darkroom", n=3, horizon=4, steps=8), 8)
  config = in_context.make_config(layout, hidden=8, layers=1)
  params = jax.eval_shape(lambda: in_context.model.init(config, jax.random.key(0)))
  frozen, read = rollout.frozen, []
  note = lambda *a: read.append(a[3].reward.shape[1]) or frozen(*a)
  monkeypatch.setattr(rollout, "frozen", note)
  for explore, want in ((False, [0, 4]), (True, [4, 8])):
    size = in_context.exams.Size(episodes=2, explore=explore)
    exam = jax.eval_shape(lambda size=size: in_context.exams.make(layout, size))
    look = lambda params, exam, size=size: in_context.exams.evaluate(
      layout, config, params, exam, size
    )
    marks = jax.eval_shape(look, params, exam)
    assert marks["return"].shape == (exam.best.shape[0], 2)
    assert list(dict.fromkeys(read))[:2] == want  # lengths of the contexts, as they come
    read.clear()


@pytest.mark.slow
def test_runs_of_several_seeds_in_one_program_are_the_runs_alone():
  layout = Layout(BANDIT, 4)
  config = in_context.make_config(layout, hidden=8, layers=1)
  size = in_context.exams.Size(tasks=3)
  plan = in_context.Sizes(steps=4, batch=4, every=2, exam=size)
  run = in_context.make_run(layout, methods.get("dpt"), config, plan)
  seeds, lrs = jnp.arange(2), jnp.asarray([1e-3, 1e-2])
  together = over_seeds(run, jax.devices()[:1])(seeds, lrs)
  alone = jax.jit(run)
  for i in range(2):
    one = alone(seeds[i], lrs[i])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(together), strict=True):
      np.testing.assert_allclose(a, b[i], atol=1e-6)
  state, curves = together
  assert curves.marks["online"].shape == (2, 3, 4) and curves.train["nll"].shape == (2, 2)
  heads = np.asarray(state.params["head"]["w"])
  assert np.abs(heads[0] - heads[1]).max() > 1e-2


def test_what_the_loop_cannot_give_is_refused_by_name():
  layout = Layout(BANDIT, 4)
  config = in_context.make_config(layout)
  for name in ("grpo", "dpo"):
    with pytest.raises(UserError, match="one a context, as sft does"):
      in_context.make_program(layout, methods.get(name), config, in_context.Sizes())


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
  folder = tmp_path_factory.mktemp("dpt")
  return folder, in_context_loop.run(dpt.get_config("bernoulli,debug"), folder, lambda _: None)


def rows_of(folder):
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in row.items() if k != "time_total"} for row in rows]


def test_a_run_leaves_what_it_says(ran):
  folder, final = ran
  written = json.loads((folder / "final.json").read_text())
  assert written.pop("wall_s") > 0 and written == pytest.approx(final, rel=1e-8)
  assert final["regret_min"] <= final["regret"] <= final["regret_max"]
  assert {"regret_emp", "regret_ucb", "regret_thompson", "offline_lcb", "distance"} <= set(final)
  kinds = [(row["kind"], row["step"]) for row in rows_of(folder)]
  assert kinds == [("eval", 0), ("train", 2), ("eval", 2), ("train", 4), ("eval", 4)]
  marks = json.loads((folder / "exam/step_000004.json").read_text())
  curves = {k: np.asarray(v) for k, v in marks["curves"].items()}
  assert curves["online"].shape == (2, 8) and curves["distance"].shape == (2, 9)
  np.testing.assert_allclose(marks["numbers"]["regret"], curves["online"].sum(1), rtol=1e-6)
  page = (folder / "report.html").read_text()
  assert "<script" not in page and page.count("<svg") == 6 and "thompson" in page


def test_a_run_that_was_stopped_equals_one_that_was_not(ran, tmp_path):
  whole, final = ran
  folder = tmp_path / "half"
  shutil.copytree(whole, folder)
  shutil.rmtree(folder / "checkpoints/4")
  for name in ("checkpoints/4.manifest.json", "final.json", "report.html"):
    (folder / name).unlink()
  says = []
  again = in_context_loop.run(dpt.get_config("bernoulli,debug"), folder, says.append)
  assert "resumed after step 2" in says and again == final
  assert rows_of(folder) == rows_of(whole)
  for name in ("exam/step_000002.json", "exam/step_000004.json", "oracles.json"):
    assert (folder / name).read_text() == (whole / name).read_text()
  done = in_context_loop.run(dpt.get_config("bernoulli,debug"), folder, says.append)
  assert {k: v for k, v in done.items() if k != "wall_s"} == pytest.approx(final, rel=1e-8)


SPECS = [f"dpt.py:{v}" for v in (*dpt.DATA, "debug", "paper", "linear,paper", "darkroom,debug")]
SPECS += [f"t2mir.py:{v}" for v in ("", *t2mir.ARMS, "debug", "paper", "token,debug")]
SPECS += [f"t2mir.py:{v}" for v in ("darkroom", "darkroom,paper", "ad", "ad,dense", "ad,paper")]
SPECS += [f"t2mir.py:{v}" for v in ("darkroom,task,debug", "ad,debug")]


@pytest.mark.parametrize("spec", SPECS)
def test_every_variant_builds(spec):
  c = cli.load_config(f"configs/{spec}")[0]
  *_, config, _ = in_context_loop.parts_of(c)
  assert (config.moe is not None) == (c.method == "t2mir")


def test_the_dense_arm_has_as_many_weights_as_a_token_meets_of_the_full_one():
  full, dense = (in_context_loop.parts_of(t2mir.get_config(v))[2].moe for v in ("full", "dense"))
  width = t2mir.get_config().model.hidden
  met = (
    2 * full.top_k * full.hidden * (width + width // 2)
  )  # of both halves, each to half the width
  assert dense.experts == dense.top_k == 1 and not dense.task_experts
  assert abs(dense.hidden * 2 * width - met) < 2 * width


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("data.family=bandits", "family: unknown name 'bandits'; did you mean 'bandit'?"),
    ("data.noise=-1", "noise=-1"),
    ("data.nois=0.1", "nois"),
    ("tokens=words", "tokens='words': use one of transition, split, history"),
    ("tokens=history", "tokens='history': bandit is read with"),
    ("tokens=split", "read with tokens='transition'"),
    ("steps=7", "must be a multiple of"),
    ("eval.every=3", "eval.every=3: must be a multiple of log.every=2"),
    ("eval.steps=99", "eval.steps=99: the context has room for 8"),
    ("eval.tasks=0", "eval.tasks=0: must be at least 1"),
    ("seeds=0", "seeds=0: must be a whole number of at least 1"),
    ("batch=0", "batch=0: must be at least 1"),
    ("model.heads=3", "heads=3"),
    ("optimizer.lr=0.0", "lr must be above 0"),
    ("optimizer.b2=1.0", "optimizer.b2=1.0: must be"),
    ("optimizer.schedule=step", "optimizer.schedule='step': use one of"),
    ("method=grpo", "one a context, as sft does"),
    ("method_args.skip=-1", "skip=-1: must be"),
    ("moe.experts=1", "moe.experts=1"),
    ("eval.explore=True", "eval.explore: bandit is played pull by pull"),
  ],
)
def test_a_bad_value_is_one_line_and_exit_code_2(capsys, tmp_path, change, message):
  flags = ["--config=configs/dpt.py:debug", f"--config.{change}", f"--workdir={tmp_path}/run"]
  assert train.main(flags) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "run").exists()
