"""Claims: statements, gates, verdicts, tuning, and studies that were simulated or are tiny."""

import importlib
import json
import types
from pathlib import Path

import numpy as np
import pytest

from experiments import claim, papers
from experiments.common import dry, gates, statements, study, trial, tuning, verdict
from experiments.common.statements import side
from grpo_jax.errors import UserError

ROOT = Path(__file__).parents[2]
STUDIES = sorted(
  p.parent.name
  for p in (ROOT / "experiments").glob("*/claim.py")
  if "UNTESTED" in p.read_text(encoding="utf-8")
)
NOISE = np.random.default_rng(0).normal(size=10) * 0.01
NOISE -= NOISE.mean()


def said(x, kind=">", margin=0.05):
  return statements.Statement("claim", "", x, kind, 0.0, quote="q", margin=margin, why="w")


@pytest.mark.parametrize(
  ("x", "kind", "result"),
  [
    (NOISE + 0.1, ">", "holds"),
    (NOISE + 0.02, ">", "holds"),  # smaller than the margin, and surely there
    (NOISE - 0.02, ">", "against"),
    (NOISE, ">", "negligible"),
    (30 * NOISE, ">", "open"),
    (NOISE, ">=", "holds"),
    (NOISE - 0.02, ">=", "holds"),
    (NOISE - 0.1, ">=", "against"),
    (30 * NOISE, ">=", "open"),
  ],
)
def test_a_claim_is_read_by_the_table(x, kind, result):
  found = statements.read(said(x, kind), 0.05)
  assert found["result"] == result
  assert found["low"] <= found["difference"] <= found["high"]
  assert found["visible"] == pytest.approx(2.8 * x.std(ddof=1) / np.sqrt(10), abs=1e-4)


def test_seeds_are_paired():
  start = np.arange(10.0)  # seeds differ by far more than arms
  s = statements.Statement("claim", "", start + 0.1 + NOISE, ">", start, margin=0.01)
  assert statements.read(s, 0.01)["result"] == "holds"


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("level", [0.95, 0.9875])
def test_the_interval_covers_what_it_says(seeds, level):
  rng = np.random.default_rng(seeds)
  draws = rng.normal(size=(3000, seeds))
  hit = [low <= 0 <= high for low, high in (statements.interval(x, level) for x in draws)]
  error = np.sqrt(level * (1 - level) / len(hit))
  assert abs(np.mean(hit) - level) < 4 * error


def test_two_identical_arms_never_differ_by_a_claim():
  for n in (5, 10, 20):
    x = np.random.default_rng(n).uniform(size=n)
    same = statements.Statement("claim", "", x, ">", x.copy(), margin=0.01)
    assert statements.read(same, 0.01)["result"] == "negligible"


@pytest.mark.parametrize(
  ("gate", "claims", "word"),
  [
    ("holds", ["holds", "holds"], "reproduced"),
    ("holds", ["holds", "open"], "in part"),
    ("holds", ["holds", "against"], "against"),
    ("holds", ["negligible", "open"], "no effect here"),
    ("holds", ["open", "negligible"], "undecided"),
    ("fails", ["holds", "holds"], "world cannot tell"),
  ],
)
def test_a_settings_verdict_is_by_rule(gate, claims, word):
  found = [{"role": "gate", "result": gate}, *({"role": "claim", "result": r} for r in claims)]
  found.append({"role": "side", "result": "against"})  # shown, never decides
  assert verdict.of_setting(found, 5) == word
  assert verdict.of_setting(found, 4) == "undecided"


@pytest.mark.parametrize(
  ("settings", "word", "where"),
  [
    ("world cannot tell, reproduced", "reproduced", ["b"]),
    ("reproduced, reproduced", "reproduced", ["a", "b"]),
    ("no effect here, reproduced", "in part", ["b"]),
    ("reproduced, world cannot tell", "in part", ["a"]),
    ("no effect here, world cannot tell", "world cannot tell", []),
    ("world cannot tell, against", "against", []),
    ("no effect here, undecided", "undecided", []),
  ],
)
def test_the_papers_verdict_is_over_the_dial(settings, word, where):
  by_name = dict(zip("ab", settings.split(", "), strict=True))
  assert verdict.of_paper(by_name) == (word, where)


def simulated(effect=0.0, learns=True, noise=0.01, **own):
  """A study whose runs are numbers: the main arm ends `effect` above the baseline."""
  module = types.ModuleType("simulated")
  vars(module).update(
    CLAIM="c", NOTES="n", UNTESTED="u", CHANGES=("loss",), HISTORY=(), CURVES=("accuracy",),
    MEASURES=("accuracy", "steps"), SCALE={"parameters": 1, "tokens": 1},
  )  # fmt: skip
  ends = {"base": 0.3, "method": 0.3 + effect, "best": 0.9}

  def measure(world, arm, plan, seed):
    module.calls.append((arm["name"], seed))
    rng = np.random.default_rng([seed, sorted(ends).index(arm["name"]), own.get("salt", 0)])
    shared = np.random.default_rng([seed, 99, own.get("salt", 0)]).normal() * 0.05
    rate = 0.0 if arm["lr"] == 1e-3 else -0.05  # the middle rate is best
    end = ends[arm["name"]] + rate if learns else 0.1
    points = np.asarray([0.1, end, end]) + shared + rng.normal(size=3) * noise
    return {"accuracy": points, "steps": plan["updates"]}

  module.measure, module.calls = measure, []
  module.statements = lambda d: [
    gates.ideal(d),
    gates.headroom(d),
    gates.learned(d),
    gates.disease("there", 1.0, ">=", 0.5),
    gates.without("acts", "nothing acts in a simulated study"),
    gates.budgets(d, "steps"),
    statements.claim("better", d.final("method"), ">", d.final("base"), quote="better"),
    side("better early", d.early("method"), ">", d.early("base")),
  ]
  if "statements" in own:
    module.statements = own["statements"]
  c = study.config(
    "simulated", "", plan={"updates": 8}, dial=("x", {"weak": {}, "strong": {}}), at="final",
    arms={
      "base": study.arm("baseline", "none"),
      "method": study.arm("main", "none"),
      "best": study.arm("oracle", "none"),
    },
  )  # fmt: skip
  return c, module


def judged(tmp_path, c, module):
  study.check(c, module)
  found = trial.run(c, module, tmp_path, lambda text: None)
  each = {s: verdict.judge(module, d)["verdict"] for s, d in found.settings.items()}
  return verdict.of_paper(each)[0], found


def many(tmp_path, count=20, **own):
  out = []
  for i in range(count):
    out.append(judged(tmp_path / str(i), *simulated(salt=i, **own))[0])
  return out


def test_a_planted_effect_of_two_margins_is_found(tmp_path):
  words = many(tmp_path, effect=0.12)  # the margin is 0.06
  assert words.count("reproduced") >= 19


def test_a_planted_null_is_not_called_an_effect(tmp_path):
  words = many(tmp_path, effect=0.0)
  assert sum(w in ("reproduced", "in part") for w in words) <= 1


def test_an_unlearnable_world_is_caught_by_its_gate(tmp_path):
  words = many(tmp_path, effect=0.12, learns=False)
  assert words.count("world cannot tell") >= 19


def test_the_choice_is_the_best_try_and_every_arm_has_as_many(tmp_path):
  c, module = simulated(effect=0.1)
  _, found = judged(tmp_path, c, module)
  for arm in ("base", "method", "best"):
    t = found.tuning[arm]
    assert t["chosen"]["lr"] == 1e-3 and len(t["table"]) == t["tries"] == 3
    assert all(len(row["scores"]) == 2 for row in t["table"])
  reported = {s for _, s in module.calls if s < study.TUNE}
  assert reported == set(range(found.seeds["strong"])) and found.seeds["other"] == 5


def test_equal_tries_go_to_the_smaller_rate_and_the_earlier_value():
  c, _ = simulated()
  with c.unlocked():
    c.arms["base"].knob = ("beta", (0.1, 0.0))
  options = tuning.tries(c, "base")
  assert len(options) == len(tuning.tries(c, "best")) == 6
  best = tuning.choose(c, {"base": [(t, np.ones(2)) for t in options]})["base"]["chosen"]
  assert best == {"lr": 3e-4, "knob": 0.1}


def test_arguments_that_count_updates_grow_with_a_run():
  c, _ = simulated()
  with c.unlocked():
    c.scaled = ("total_steps",)
    c.arms["method"].args = {"total_steps": 8, "eps": 8}
  trial = {"lr": 0.1, "knob": None}
  for share, steps in ((0.5, 4), (1, 8), (4, 32)):
    spec = study.cell(c, "strong", "method", trial, share).spec
    assert spec["args"] == {"total_steps": steps, "eps": 8} and spec["plan"]["updates"] == steps
  assert study.cell(c, "strong", "base", trial, 0.5).spec["args"] == {}


def test_arms_with_unequal_tries_are_refused():
  c, module = simulated()
  with c.unlocked():
    c.arms["base"].lrs = (1e-3, 3e-3)
  with pytest.raises(UserError, match=r"arms\.base: 2 tries where others have 3"):
    study.check(c, module)


def test_a_killed_study_goes_on_and_a_changed_arm_runs_by_itself(tmp_path):
  c, module = simulated(effect=0.1)
  plain, stop = module.measure, [9]

  def killed(*args):
    if len(module.calls) >= stop[0]:
      raise KeyboardInterrupt
    return plain(*args)

  module.measure = killed
  with pytest.raises(KeyboardInterrupt):
    judged(tmp_path, c, module)
  first = list(module.calls)
  module.measure = plain
  _, found = judged(tmp_path, c, module)
  again = module.calls[len(first) :]
  assert len(set(first) & set(again)) <= c.at_once  # only what was in the air
  module.calls.clear()
  _, same = judged(tmp_path, c, module)
  assert module.calls == [] and same.tuning == found.tuning
  c.arms["method"].args = {"eps": 0.1}
  judged(tmp_path, c, module)
  assert {arm for arm, _ in module.calls} == {"method"}


def reads(*extra, drop=()):
  """Statements of the simulated study with some more, or without a kind of gate."""
  plain = simulated()[1].statements
  return lambda d: [s for s in plain(d) if s.gate not in drop] + [f(d) for f in extra]


@pytest.mark.parametrize(
  ("extra", "drop", "message"),
  [
    ([lambda d: side("", d.final("base", "accurracy"), ">", 0)], (), "did you mean 'accuracy'"),
    ([lambda d: side("", d.final("bse"), ">", 0)], (), "did you mean 'base'"),
    ([], ("learned",), "no gate 'learned'"),
    ([lambda d: statements.claim("s", d.final("method") * 2, ">", 0, "q")], (), "give like="),
    (
      [lambda d: statements.claim("s", d.final("base", "steps"), ">", 0, "q")],
      (),
      "no oracle|unknown range",
    ),
  ],
)
def test_statements_that_read_what_is_not_there_are_refused_before_a_run(extra, drop, message):
  c, module = simulated(statements=reads(*extra, drop=drop))
  with pytest.raises(UserError, match=message):
    dry.check(c, module, dry.first_trials(c))
  assert module.calls == []


def test_a_claim_needs_its_quote_and_a_margin_its_reason():
  with pytest.raises(UserError, match="quote"):
    statements.claim("c", 1.0, ">", 0.0, " ")
  with pytest.raises(UserError, match="reason"):
    statements.claim("c", 1.0, ">", 0.0, "q", margin=0.1)


def test_an_ideal_that_fails_a_claim_makes_the_world_unable_to_tell(tmp_path):
  c, module = simulated(effect=0.12)
  plain = module.statements
  beaten = lambda d: statements.claim(
    "below 0.6", 0.6, ">", d.final(d.main), "q", margin=0.05, why="of this test"
  )
  module.statements = lambda d: [*plain(d), beaten(d)]
  word, found = judged(tmp_path, c, module)
  gate = verdict.judge(module, found.settings["strong"])["statements"][0]
  assert word == "world cannot tell" and gate["result"] == "fails" and "below 0.6" in gate["text"]


@pytest.mark.parametrize("slug", STUDIES)
def test_a_study_is_whole_and_reads_what_its_arms_have(slug, monkeypatch):
  module = importlib.import_module(f"experiments.{slug}.claim")
  assert slug in {s.replace("-", "_").replace(".", "_") for s, _ in papers.papers()}
  known = {}  # arms that differ in numbers only have the same names

  def names(c, module, arm, trial):
    a = c.arms[arm]
    key = a.method, tuple(sorted(a.args.items(), key=str)), arm
    if key not in known:
      known[key] = dry_names(c, module, arm, trial)
    return known[key]

  dry_names = dry.names
  monkeypatch.setattr(dry, "names", names)
  for variant in ("debug", "ablations"):
    c = module.get_config(variant)
    study.check(c, module)
    dry.check(c, module, dry.first_trials(c))


@pytest.fixture
def tiny(monkeypatch):
  """A study on the fused loop of two arms that are the same."""
  module = types.ModuleType("experiments.tiny.claim")
  vars(module).update(
    CLAIM="the same is more than the same", NOTES="none", UNTESTED="all", CHANGES=("other",),
    HISTORY=(), CURVES=("accuracy", "train:reward", "more:one"), PROBED={"y": ("one",)},
    probe=lambda cell: (lambda *_: {"one": 1.0}) if cell.arm == "y" else None,
    statements=lambda d: [
      gates.ideal(d, "x"), gates.headroom(d), gates.learned(d),
      gates.disease("there", d.final("y", "more:one"), ">=", 1.0),
      gates.without("acts", "two arms that are the same"), gates.budgets(d, "sampled"),
      statements.claim("accuracy", d.final("y"), ">", d.final("x"), "q"),
    ],
  )  # fmt: skip
  monkeypatch.setitem(__import__("sys").modules, "experiments.tiny.claim", module)
  c = study.config(
    "tiny", "debug", world="modular_addition", params={"modulus": 3, "answer": 2},
    plan={"updates": 2, "group": 2, "problems": 8, "split": "id"},
    dial=("modulus", {"three": {}}), best=1.0,
    debug={"updates": 2, "eval_every": 1, "prompts": 2, "heldout": 8, "warm_steps": 0},
    arms={"x": study.arm("baseline", "grpo"), "y": study.arm("main", "grpo")},
  )  # fmt: skip
  return c, module


@pytest.mark.slow
def test_a_study_leaves_its_evidence_and_the_same_command_runs_nothing_again(
  tiny, tmp_path, monkeypatch
):
  c, _ = tiny
  lines = []
  old = {"verdict": "refuted", "statements": [{"text": "old"}], "seeds": 10, "rule": "gone"}
  (tmp_path / "out").mkdir()
  (tmp_path / "out/verdict.json").write_text(json.dumps(old))
  final = claim.test(c, tmp_path / "run", tmp_path / "out", lines.append)
  kept = json.loads((tmp_path / "out/verdict.json").read_text())
  assert kept["verdict"] == final["verdict"] == "undecided" and kept["protocol"] == 2
  (first,) = kept["history"]
  assert first == {"protocol": 1} | {k: old[k] for k in ("verdict", "statements", "seeds")}
  said = kept["found"]["three"]["statements"][-1]
  assert said["difference"] == 0 and said["x"] == said["y"]  # equal starts, equal samples
  curves = json.loads((tmp_path / "out/curves.json").read_text())
  assert curves["curves"]["three, accuracy"]["x"]["steps"] == [0, 1, 2]
  assert curves["curves"]["three, train:reward"]["x"]["steps"] == [1, 2]
  assert (tmp_path / "out/curves.png").stat().st_size > 1000
  assert kept["scale"]["parameters"] > 1000 and kept["scale"]["tokens"] > 4
  from experiments.common import fused_runs

  monkeypatch.setattr(fused_runs.Programs, "run", pytest.fail)
  claim.test(c, tmp_path / "run", tmp_path / "out", lines.append)
  again = json.loads((tmp_path / "out/verdict.json").read_text())
  assert again["history"] == kept["history"] and again["found"] == kept["found"]


def test_an_unknown_study_or_a_config_without_a_dial_is_one_line(capsys):
  assert claim.main(["--config=configs/quickstart.py"]) == 2
  assert "has no `dial`" in capsys.readouterr().err
  assert claim.main(["igop"]) == 2
  assert "did you mean 'igpo'" in capsys.readouterr().err
