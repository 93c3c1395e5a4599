"""report.html of synthetic run folders: complete, partial, hostile, long."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments import report as command
from grpo_jax.errors import UserError
from grpo_jax.run import report, report_data, rollout_log
from grpo_jax.run.metrics import MetricsWriter

HOSTILE = [
  "</script><img src=x onerror=alert(1)>",
  "<!--<script>",
  "{{data}} {{script}}",
  "\u2028\u202e'\"&amp;",
]


class _Page(HTMLParser):
  """What a browser's tokenizer makes of the page: elements, attributes, script bodies."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.scripts, self.words = [], [], [], []
    self.inside = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [name for name, _ in attrs]
    self.inside = tag
    if tag == "script":
      self.scripts.append("")

  def handle_endtag(self, tag):
    self.inside = None

  def handle_data(self, data):
    if self.inside == "script":
      self.scripts[-1] += data
    else:
      self.words.append(data)


def _make(workdir, steps=4, evals=True, rollouts=True, final=True, text="7", **over):
  writer = MetricsWriter(workdir, steps, tensorboard=False)
  if evals:
    writer.write(0, _eval(0.25), kind="eval")
  for step in range(1, steps + 1):
    row = {"reward": step / steps, "length": 5.0, "logp_gap": 1e-6, "zero_variance": 0.2}
    row |= {"time_sample": 2.0, "time_update": 3.0, "time_total": 5.5, "tokens": 100}
    writer.write(step, row | over)
    if rollouts:
      _rollouts(workdir, step, text)
  if evals:
    writer.write(steps, _eval(0.75), kind="eval")
  if final:
    result = {"accuracy_before": 0.25, "accuracy_after": 0.75, "problems": 64, "wall_s": 61.0}
    writer.finish(result | {"gain_low": 0.38, "gain_high": 0.61})
  writer.close()
  config = {"method": {"name": "grpo"}, "model": "tiny", "note": text, "lr": 1e-5}
  (workdir / "config.json").write_text(json.dumps(config))
  return workdir


def _eval(p):
  row = {"eval_accuracy": p, "eval_problems": 64, "eval_pass@4": p + 0.1}
  row |= {"eval_accuracy/easy": p + 0.2, "eval_problems/easy": 32}
  return row | {"eval_accuracy/hard": p - 0.2, "eval_problems/hard": 32}


def _rollouts(workdir, step, text, tokens=3, n=2, g=4):
  shape = (n, g, tokens)
  rollout_log.write_rollouts(
    workdir,
    step,
    rollout_log.groups_of(
      prompt_id=range(n),
      prompts=[text] * n,
      labels=[text] * n,
      answers=[text] * n,
      tokens=np.ones(shape, int),
      length=np.full((n, g), tokens),
      reward=np.eye(n, g),
      correct=np.eye(n, g) > 0,
      adv=np.eye(n, g) - 0.25,
      logp=np.full(shape, -0.5),
      entropy=np.full(shape, 0.7),
      ratio=np.ones(shape),
      token_texts=lambda ids: [text] * len(ids),
      token_budget=100_000,
    ),
  )


def _data(page):
  return json.loads(_Page(page).scripts[0])


def _written(workdir):
  return report.write_report(workdir).read_text()


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_or_a_config_wrote_stays_inert_and_whole(tmp_path, text):
  plain, hostile = tmp_path / "plain", tmp_path / "hostile"
  page = _Page(_written(_make(hostile, text=text)))
  base = _Page(_written(_make(plain, text="7")))
  assert page.tags == base.tags and page.attributes == base.attributes
  assert len(page.scripts) == 2 and page.scripts[1] == base.scripts[1]
  sample = json.loads(page.scripts[0])["rollouts"][0]["groups"][0]
  assert sample["samples"][0]["text"][0] == text and sample["prompt"] == text
  assert text in page.words  # the config's note, as text


def test_hostile_label_and_metric_names_stay_inert(tmp_path):
  bad = HOSTILE[0]
  _make(tmp_path, evals=False, final=False, **{bad: 1.0})
  writer = MetricsWriter(tmp_path, 4, tensorboard=False)
  writer.write(4, {f"eval_accuracy/{bad}": 0.5, "eval_accuracy": 0.5}, kind="eval")
  page = _Page(_written(tmp_path))
  assert "img" not in page.tags and len(page.scripts) == 2
  assert bad in json.loads(page.scripts[0])["train"]


def test_page_needs_no_network_and_runs_only_its_own_script(tmp_path):
  text = _written(_make(tmp_path))
  page = _Page(text)
  assert not {"src", "srcset", "action", "data"} & set(page.attributes)
  assert re.findall(r'href="(?!#)', text) == [] and "@import" not in text and "url(" not in text
  assert set(re.findall(r"https?://[^\"']+", text)) <= {"http://www.w3.org/2000/svg"}
  digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text
  assert "innerHTML" not in page.scripts[1] and "insertAdjacent" not in page.scripts[1]


def test_headline_shows_before_after_and_the_interval_of_the_final_line(tmp_path):
  text = _written(_make(tmp_path))
  for part in ("25.0% → 75.0%", "+50.0 points", "+38.0 to +61.0", "64 problems", "1 min 01 s"):
    assert part in text
  assert "unpaired" not in text and 'class="warn"' not in text and "grpo · tiny" in text


def test_subject_names_method_model_tasks_and_batch():
  config = {
    "method": "grpo",
    "model": "/models/SmolLM2/",
    "data": {
      "source": "reasoning_gym",
      "mix": [{"name": "chain_sum", "label": "1"}, {"name": "chain_sum"}, {"name": "gcd"}],
    },
    "batch": {"prompts": 8, "group": 16},
  }
  want = "grpo · SmolLM2 · chain_sum, gcd · 8 prompts × 16 completions"
  assert report_data.subject(config) == want
  assert report_data.subject({"method": {"name": "rloo"}, "data": None}) == "rloo"
  assert report_data.subject({"data": {"source": "rows.jsonl", "mix": []}}) == "rows.jsonl"
  assert report_data.subject({}) == ""


def test_run_without_a_final_line_gets_an_unpaired_interval_and_says_so(tmp_path):
  text = _written(_make(tmp_path, final=False))
  assert "95% interval, unpaired" in text and "has not finished" in text


def test_unpaired_interval_is_newcombes_hybrid_score_interval():
  # Newcombe 1998, table II, method 10: 56/70 - 48/80 gives 0.0524 to 0.3339.
  low1, high1 = report_data.metrics_lib.wilson(48, 80)
  low2, high2 = report_data.metrics_lib.wilson(56, 70)
  d = 56 / 70 - 48 / 80
  want = (d - np.hypot(0.8 - low2, high1 - 0.6), d + np.hypot(high2 - 0.8, 0.6 - low1))
  np.testing.assert_allclose(want, (0.0524, 0.3339), atol=1e-4)
  low, high = report_data._newcombe(0.25, 0.75, 64)
  l1, u1 = report_data.metrics_lib.wilson(16, 64)
  l2, u2 = report_data.metrics_lib.wilson(48, 64)
  assert low == pytest.approx(0.5 - np.hypot(0.75 - l2, u1 - 0.25))
  assert high == pytest.approx(0.5 + np.hypot(u2 - 0.75, 0.25 - l1))


def _tear(workdir):
  path = workdir / "metrics.jsonl"
  path.write_bytes(path.read_bytes()[:-9])


PARTIAL = {
  "empty": lambda d: d.mkdir(exist_ok=True),
  "one_step": lambda d: _make(d, steps=1),
  "no_eval": lambda d: _make(d, evals=False, final=False),
  "no_rollouts": lambda d: _make(d, rollouts=False),
  "empty_rollout_file": lambda d: (_make(d, rollouts=False), rollout_log.write_rollouts(d, 1, [])),
  "eval_only": lambda d: _make(d, steps=0, final=False),
  "all_null": lambda d: _make(d, reward=float("nan"), time_total=float("inf")),
  "unicode": lambda d: _make(d, text="🙂日本\ud800\u0000é"),
  "torn": lambda d: _tear(_make(d, final=False)),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_folders_still_give_a_page(tmp_path, name):
  PARTIAL[name](tmp_path)
  data = _data(_written(tmp_path))
  assert set(data) == {"train", "evals", "rollouts"}
  lengths = {len(v) for v in data["train"].values()}
  assert len(lengths) == 1


def test_band_of_a_difficulty_uses_its_own_number_of_problems(tmp_path):
  groups = _data(_written(_make(tmp_path)))["evals"]["groups"]
  by_label = {g["label"]: g for g in groups}
  assert list(by_label) == ["all", "easy", "hard"]
  assert by_label["all"]["low"][0] == pytest.approx(report_data.metrics_lib.wilson(16, 64)[0])
  # 0.45 of 32 problems is no whole number of them: the nearest is taken.
  assert by_label["easy"]["high"][0] == pytest.approx(report_data.metrics_lib.wilson(14, 32)[1])


def test_a_single_difficulty_is_not_shown_twice(tmp_path):
  writer = MetricsWriter(tmp_path, 1, tensorboard=False)
  writer.write(0, {"eval_accuracy": 0.5, "eval_accuracy/easy": 0.5}, kind="eval")
  assert [g["label"] for g in report_data.load(tmp_path)["evals"]["groups"]] == ["all"]


def test_time_of_an_update_leaves_out_the_first_and_setup(tmp_path):
  _make(tmp_path, steps=3)
  text = (
    (tmp_path / "metrics.jsonl").read_text().replace('"time_total": 5.5', '"time_total": 99', 1)
  )
  (tmp_path / "metrics.jsonl").write_text(text)
  page = _written(tmp_path)
  assert "5.5 s an update" in page and "50 a second of sampling" in page and "1 min 01 s" in page


@pytest.mark.parametrize(
  ("over", "words"),
  [
    ({"zero_variance": 1.0}, "equal rewards"),
    ({"truncated": 0.6}, "cut at the token limit"),
    ({"logp_gap": 2e-3}, "Sampler and trainer disagreed"),
    ({"reward_failed": 2}, "failed on 8 completions"),
    ({"loss": float("nan")}, "4 values were NaN"),
    ({"max_ratio": 50.0}, "importance ratio reached 50"),
  ],
)
def test_each_fault_gives_its_warning_and_a_healthy_run_none(tmp_path, over, words):
  assert report_data.load(_make(tmp_path / "good"))["warnings"] == []
  found = report_data.load(_make(tmp_path / "bad", **over))["warnings"]
  assert len(found) == 1 and words in found[0]["what"] and found[0]["do"]


def test_falling_accuracy_and_collapsed_entropy_are_warned_about(tmp_path):
  writer = MetricsWriter(_make(tmp_path, steps=20), 20, tensorboard=False, keep_below_step=0)
  writer.write(0, {"eval_accuracy": 0.8, "eval_problems": 200}, kind="eval")
  for step in range(20):
    writer.write(step, {"entropy": 1.0 if step < 5 else 0.01})
  writer.write(20, {"eval_accuracy": 0.5, "eval_problems": 200}, kind="eval")
  found = " ".join(w["what"] for w in report_data.load(tmp_path)["warnings"])
  assert "accuracy fell" in found and "Entropy fell from 1.00" in found


def test_long_runs_stay_below_one_megabyte_and_keep_first_last_and_worst(tmp_path):
  writer = MetricsWriter(tmp_path, 3000, tensorboard=False)
  lines = []
  for step in range(1, 3001):
    gap = 0.5 if step == 1234 else 1e-6
    row = {f"m{i}": step / 3000 + i for i in range(20)} | {"logp_gap": gap}
    lines.append(json.dumps({"step": step, "kind": "train", **row}))
  writer.path.write_text("\n".join(lines) + "\n")
  for step in range(100, 3001, 100):
    _rollouts(tmp_path, step, "some text", tokens=120, n=4, g=8)
  path = report.write_report(tmp_path)
  assert path.stat().st_size < 1_000_000
  data = _data(path.read_text())
  assert len(data["train"]["step"]) == 400 and data["train"]["step"][-1] == 3000
  assert max(data["train"]["logp_gap"]) == 0.5
  shown = [r["step"] for r in data["rollouts"]]
  assert shown[0] == 100 and shown[-1] == 3000
  # Bucket means keep the mean of the curve to within a bucket's rounding.
  assert np.mean(data["train"]["m0"]) == pytest.approx(np.mean(np.arange(1, 3001) / 3000), rel=1e-3)


def test_one_huge_step_of_rollouts_is_cut_to_the_budget(tmp_path):
  _rollouts(tmp_path, 1, "x" * 3000, tokens=60, n=4, g=32)
  path = report.write_report(tmp_path)
  assert path.stat().st_size < 1_000_000
  assert _data(path.read_text())["rollouts"][0]["groups"]


def test_spread_keeps_the_ends_and_even_distances():
  for n in range(1, 30):
    for k in range(1, 12):
      kept = report_data.band(list(range(n)), k)
      assert len(kept) == len(set(kept)) == min(n, k) and kept[-1] == n - 1
      if k > 1:
        assert kept[0] == 0
      assert len(kept) < 2 or np.ptp(np.diff(kept)) <= 1


def test_command_rebuilds_the_page_and_names_a_missing_folder(tmp_path, capsys):
  _make(tmp_path)
  assert command.main([str(tmp_path)]) == 0
  assert (tmp_path / "report.html").exists()
  assert command.main([str(tmp_path / "nowhere")]) == 2
  assert "no folder" in capsys.readouterr().err
  with pytest.raises(UserError, match="config.json: not JSON"):
    (tmp_path / "config.json").write_text("{")
    report.write_report(tmp_path)


def test_plot_is_a_small_png_and_absent_without_evaluation(tmp_path):
  pytest.importorskip("matplotlib")
  path = report.plots(_make(tmp_path / "run"), tmp_path / "docs" / "quickstart.png")
  assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and 5_000 < path.stat().st_size < 100_000
  assert report.plots(_make(tmp_path / "bare", evals=False, final=False)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hostile", *PARTIAL])
def test_page_draws_in_a_browser_and_hostile_text_does_not_run(tmp_path, name):
  browser = shutil.which("chromium") or shutil.which("google-chrome")
  if not browser:
    pytest.skip("needs a Chromium")
  run = tmp_path / "run"
  if name == "hostile":
    _make(run, text="</script><script>document.title='owned'</script><img src=x onerror=owned()>")
  else:
    PARTIAL[name](run)
  page = report.write_report(run)
  flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-sync"
  flags += f" --no-first-run --user-data-dir={tmp_path / 'profile'} --virtual-time-budget=2000"
  command_line = [browser, *flags.split(), "--dump-dom", page.as_uri()]
  dom = subprocess.run(command_line, capture_output=True, text=True, timeout=60).stdout
  tags = _Page(dom).tags
  assert "img" not in tags and tags.count("script") == 2 and "<title>run</title>" in dom
  charts = len(re.findall(r'class="chart', dom))
  data = _data(page.read_text())
  assert dom.count('class="sample"') == (
    len(data["rollouts"][-1]["groups"][0]["samples"]) if data["rollouts"] else 0
  )
  assert charts >= bool(data["evals"]["groups"]) + 3 * (len(data["train"]["step"]) > 0)
  assert ('hint">No rollouts were recorded' in dom) == (not data["rollouts"])
