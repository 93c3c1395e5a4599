"""T2MIR's evidence: measures of routing against loops, parameters counted by hand, statements."""

import itertools
import json
import math

import jax
import numpy as np
import pytest

from configs import t2mir
from experiments.common import figures as in_context
from experiments.common import first_protocol as statements
from experiments.t2mir import __main__ as page
from experiments.t2mir import claims, routing
from grpo_jax.train import in_context as in_context_loop
from grpo_jax.train.programs import in_context as program

RNG = np.random.default_rng(0)


# ---- measures ------------------------------------------------------------------------------------


def test_information_is_that_of_a_table_counted_by_hand():
  joint = RNG.random((3, 5))
  p = joint / joint.sum()
  want = sum(
    p[i, j] * math.log(p[i, j] / (p[i].sum() * p[:, j].sum()))
    for i, j in itertools.product(range(3), range(5))
  )
  assert routing.information(joint) == pytest.approx(want, rel=1e-12)
  assert routing.information(np.outer([1, 2, 3], [1, 0, 4])) == pytest.approx(0, abs=1e-12)
  assert routing.information(7 * np.eye(4)) == pytest.approx(math.log(4))


def test_purity_is_one_where_every_group_has_one_class_and_a_third_where_all_are_alike():
  assert routing.purity(np.asarray([[4, 0, 1], [0, 9, 0]])) == 1
  assert routing.purity(np.ones((3, 6))) == pytest.approx(1 / 3)
  assert routing.purity(np.asarray([[3, 1], [1, 5]])) == pytest.approx(0.8)


def test_nearest_centroid_leaves_the_row_itself_out_and_tasks_with_one_row():
  q, task = RNG.normal(size=(14, 3)), np.asarray([0] * 5 + [1] * 4 + [2] * 4 + [3])
  right = 0
  for i in range(13):
    others = [j for j in range(13) if j != i]
    center = {t: np.mean([q[j] for j in others if task[j] == t], axis=0) for t in range(3)}
    right += task[i] == min(center, key=lambda t: np.linalg.norm(q[i] - center[t]))
  assert routing.nearest_centroid(q, task) == pytest.approx(right / 13)
  assert 0 < right < 13
  apart = q + 100 * task[:, None]
  assert routing.nearest_centroid(apart, task) == 1
  assert math.isnan(routing.nearest_centroid(q[:5], task[:5]))


def test_similarity_is_the_cosine_about_the_mean():
  q = RNG.normal(size=(6, 4))
  found = routing.similarity(q + 50)
  d = q - q.mean(axis=0)
  for i, j in itertools.product(range(6), repeat=2):
    want = d[i] @ d[j] / (np.linalg.norm(d[i]) * np.linalg.norm(d[j]))
    assert found[i, j] == pytest.approx(want, abs=1e-9)


def test_marks_read_the_tokens_behind_the_query_and_the_contexts_that_tell_their_task():
  part = np.asarray([-1, 0, 1, 2, 0, 1, 2])
  gate = np.zeros((8, 7, 4))
  for place, kind in enumerate(part):
    gate[:, place, kind if kind >= 0 else 3] = 1  # the query goes where nothing else does
  task, told = np.repeat(np.arange(2), 4), np.asarray([1, 1, 1, 0] * 2, bool)
  q = np.eye(3)[np.asarray([0, 0, 0, 2, 1, 1, 1, 2])] + 0.01 * RNG.normal(size=(8, 3))
  found = routing.marks({"token_gate": gate, "q": q}, part, task, told)
  assert found["token_modality"] == pytest.approx(math.log(3)) and found["token_purity"] == 1
  assert found["token_by_modality"] == np.eye(3, 4).tolist()
  assert found["token_cv2"] == pytest.approx(np.var([1, 1, 1, 0], ddof=1) / 0.75**2)
  assert found["q_task"] == pytest.approx(math.log(2)) and found["q_nearest"] == 1
  assert found["q_nearest_all"] < 1 and np.shape(found["q_similarity"]) == (6, 6)
  assert "task_modality" not in found
  assert routing.marks({"token_gate": gate[..., :1]}, part, task, told) == {}  # a dense layer


# ---- parameters ----------------------------------------------------------------------------------


def built(arm):
  layout, method, config, plan = in_context_loop.parts_of(t2mir.get_config(arm))
  init = program.make_program(layout, method, config, plan).init
  return jax.eval_shape(lambda: init(0)).params, config.moe


def test_a_token_meets_as_many_weights_in_the_experts_of_every_arm():
  width = t2mir.get_config().model.hidden
  met, active = {}, {}
  for arm in t2mir.ARMS:
    params, moe = built(arm)
    (layer,) = (layer["moe"] for layer in params["layers"].values() if "moe" in layer)
    met[arm] = 0
    for half in layer.values():
      up, down = half["experts"]["up"], half["experts"]["down"]
      met[arm] += moe.top_k * (math.prod(up.shape[1:]) + math.prod(down.shape[1:]))
    active[arm] = routing.sizes(params, moe)["active"]
  assert len(set(met.values())) == 1 and met["full"] == 12_288
  # What remains: gates, and biases of two or four experts instead of one.
  assert max(active.values()) - min(active.values()) < 0.02 * active["dense"]
  assert t2mir.get_config("token").moe.hidden * 2 * width * 2 == met["full"]


def test_active_parameters_leave_out_what_a_token_does_not_meet():
  params, moe = built("full")
  count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
  found = routing.sizes(params, moe)
  h, d = 64, 32
  one = d * h + h + h * (d // 2) + d // 2
  key_gate, noise, contrast = d * 8 + 8 * 8, d * 6, 8 * 8
  assert found["parameters"] == count(params)
  assert found["active"] == count(params) - 4 * one - 6 * one - key_gate - noise - contrast


# ---- the verdict ---------------------------------------------------------------------------------


def run_of(area, **marks):
  each = lambda v: [{k: x + 0.001 * s for k, x in v.items()} for s in range(3)]
  before = {"token_modality": 0.2}
  learning = np.asarray([[0.1, area], [0.1, area + 0.001], [0.1, area - 0.001]])
  return claims.Run(
    np.full((3, 6), area),
    [0, 9],
    learning,
    np.full(3, area),
    {"after": each(marks), "before": each(before)},
  )


GOOD = {"token_purity": 0.9, "token_modality": 0.8, "q_nearest": 0.7, "q_task": 1.2}


def all_arms(**areas):
  runs = {arm: run_of(areas.get(arm, 0.5)) for arm in claims.OTHERS}
  runs["no_contrast"] = run_of(areas.get("no_contrast", 0.5), q_nearest=0.4, q_task=0.9)
  return {"full": run_of(areas.get("full", 0.7), **GOOD)} | runs


def test_the_claim_needs_the_whole_layer_to_be_above_every_arm():
  said = claims.statements(all_arms())
  assert len(said) == 9 and statements.judge(said)[0] == "confirmed"
  for arm in claims.OTHERS:
    assert statements.judge(claims.statements(all_arms(**{arm: 0.9})))[0] == "refuted"
  little = statements.judge(claims.statements(all_arms(full=0.51)))
  assert little[0] == "refuted"  # surely above, by less than the margin


def test_few_arms_give_few_statements_and_none_confirms_nothing(tmp_path, capsys):
  runs = all_arms()
  assert len(claims.statements({k: runs[k] for k in ("full", "token")})) == 4
  said = claims.statements({k: runs[k] for k in ("token", "dense")})
  assert in_context.evidence(tmp_path, "c", said, {"seeds": 3}) == "inconclusive"
  kept = json.loads((tmp_path / "verdict.json").read_text())
  assert kept["statements"] == [] and kept["seeds"] == 3


def test_arms_that_have_all_learned_nothing_refute_nothing(tmp_path, capsys):
  assert claims.weak(all_arms(full=0.25, **dict.fromkeys(claims.OTHERS, 0.0))) is None
  runs = all_arms(full=0.02, **dict.fromkeys(claims.OTHERS, 0.05))
  said, why = claims.statements(runs), claims.weak(runs)
  assert statements.judge(said)[0] == "refuted" and why is not None and "0.05" in why
  assert in_context.evidence(tmp_path, "c", said, {}, why) == "inconclusive"
  kept = json.loads((tmp_path / "verdict.json").read_text())
  assert kept["inconclusive_because"] == why and len(kept["statements"]) == 9


def test_pictures_are_drawn_of_any_arms(tmp_path):
  pytest.importorskip("matplotlib")
  matrix = {"token_by_modality": np.eye(3, 6).tolist(), "task_by_modality": np.eye(3, 8).tolist()}
  runs = all_arms()
  runs["full"].routing["after"][0] |= matrix | {"q_similarity": np.eye(4).tolist()}
  page.curves(runs, tmp_path / "curves.png")
  page.maps(runs, tmp_path / "routing.png")
  page.maps({"dense": runs["dense"]}, tmp_path / "none.png")
  sizes = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
  assert sizes.keys() == {"curves.png", "routing.png"} and max(sizes.values()) < 300_000


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--parts=ful", "did you mean 'full'?"),
    ("--arms=full", "unknown name '--arms'; did you mean '--parts'?"),
  ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(capsys, tmp_path, flag, message):
  never = lambda parts, workdir: pytest.fail("ran")
  assert in_context.main([flag], "", claims.ARMS, str(tmp_path), never) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_two_small_arms_run_resume_and_are_judged(tmp_path, monkeypatch, capsys):
  pytest.importorskip("matplotlib")
  whole = t2mir.get_config
  monkeypatch.setattr(t2mir, "get_config", lambda arm="": whole(f"{arm},debug" if arm else "debug"))
  found = page.test(["full", "dense"], tmp_path)
  verdict = json.loads((tmp_path / "verdict.json").read_text())
  assert verdict["verdict"] == found["verdict"] and len(verdict["statements"]) == 4
  assert set(verdict["sizes"]) == {"full", "dense"}
  assert set(verdict["routing"]["full"]) == {"before", "after"}
  assert {"curves.png", "routing.png"} <= {p.name for p in tmp_path.iterdir()}
  page.test(["full", "dense"], tmp_path)
  assert json.loads((tmp_path / "verdict.json").read_text())["statements"] == verdict["statements"]
