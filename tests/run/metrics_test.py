"""metrics.jsonl, the live line, the intervals and the rollout log."""

import io
import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.run import metrics as metrics_lib
from grpo_jax.run import rollout_log
from grpo_jax.run.metrics import MetricsWriter, paired_gain, read_metrics, wilson


def _run(workdir, steps, **kwargs):
  writer = MetricsWriter(workdir, 10, tensorboard=False, **kwargs)
  for step in steps:
    writer.write(step, {"reward": np.float32(step / 7), "lr": 1e-5})
    if step % 2 == 0:
      writer.write(step, {"eval_accuracy": step / 10}, kind="eval")
  writer.close()
  return (workdir / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("killed_at", [3, 4, 7])
def test_file_after_kill_and_resume_equals_that_of_an_uninterrupted_run(tmp_path, killed_at):
  whole = _run(tmp_path / "whole", range(1, 11))
  _run(tmp_path / "cut", range(1, killed_at + 1))
  with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
    file.write('{"step": 8, "kind": "tr')
  assert _run(tmp_path / "cut", range(3, 11), keep_below_step=3) == whole
  assert not list((tmp_path / "cut").glob("*.tmp"))


def test_torn_last_line_is_dropped_without_a_resume_step(tmp_path):
  _run(tmp_path, [1, 2])
  before = read_metrics(tmp_path)
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 3, "rew')
  assert read_metrics(tmp_path) == before
  MetricsWriter(tmp_path, 10, tensorboard=False).write(3, {"reward": 1.0})
  assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 2, 3]


def test_damage_inside_the_file_names_its_line(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
  with pytest.raises(UserError, match="line 2"):
    read_metrics(tmp_path)


def test_truncate_after_keeps_the_step_itself(tmp_path):
  writer = MetricsWriter(tmp_path, 10, tensorboard=False)
  for step in range(5):
    writer.write(step, {"x": step})
  writer.truncate_after(2)
  assert [r["step"] for r in read_metrics(tmp_path)] == [0, 1, 2]


def test_nan_and_infinity_become_null_and_are_counted(tmp_path):
  writer = MetricsWriter(tmp_path, 10, tensorboard=False)
  values = {"a": math.nan, "b": jnp.float32(jnp.inf), "c": np.float32(0.1), "n": 3}
  writer.write(1, values)
  (row,) = read_metrics(tmp_path)
  assert row["a"] is None and row["b"] is None and row["nonfinite"] == 2
  assert np.float32(row["c"]) == np.float32(0.1) and row["n"] == 3


def test_every_float32_survives_the_file_bit_for_bit(tmp_path):
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 2**32, 300, dtype=np.uint32)
  values = [v for v in bits.view(np.float32) if np.isfinite(v)]
  MetricsWriter(tmp_path, 1, tensorboard=False).write(1, {str(i): v for i, v in enumerate(values)})
  (row,) = read_metrics(tmp_path)
  assert all(np.float32(row[str(i)]) == v for i, v in enumerate(values))


def test_a_vector_is_refused_by_name(tmp_path):
  writer = MetricsWriter(tmp_path, 10, tensorboard=False)
  with pytest.raises(UserError, match="'adv'"):
    writer.write(1, {"adv": np.zeros(3)})
  assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_gets_the_same_numbers(tmp_path):
  pytest.importorskip("tensorboardX")
  from tensorboardX.proto.event_pb2 import Event

  writer = MetricsWriter(tmp_path, 10)
  writer.write(4, {"reward": 0.25, "bad": math.nan})
  writer.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  # Records: length u64, its checksum u32, the event, its checksum u32.
  data, seen = path.read_bytes(), {}
  while data:
    size = int.from_bytes(data[:8], "little")
    event = Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]
    seen |= {v.tag: (event.step, v.simple_value) for v in event.summary.value}
  assert seen == {"train/reward": (4, 0.25), "train/nonfinite": (4, 1.0)}


class _Terminal(io.StringIO):
  def isatty(self):
    return True


FULL = {
  "reward": 0.5,
  "correct": 0.41,
  "length": 6.2,
  "truncated": 0.03,
  "zero_variance": 0.25,
  "entropy": 0.52,
  "logp_gap": 2e-6,
  "time_sample": 3.1,
  "time_verify": 0.02,
  "time_score": 1.0,
  "time_update": 4.5,
  "time_total": 8.6,
}


def test_progress_says_all_of_it_on_a_line_of_its_own_in_a_log(tmp_path):
  out = io.StringIO()
  writer = MetricsWriter(tmp_path, 10, tensorboard=False, stream=out)
  line = writer.progress(4, FULL)
  assert out.getvalue() == line + "\n"
  for part in ("4/10", "0.500", "41%", "6.2", "3%", "25%", "0.52", "2e-06", "update 4.5"):
    assert part in line
  assert line.endswith("left 52 s")  # 6 more updates of 8.6 s


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_progress_stays_in_one_line_of_the_terminal(tmp_path, monkeypatch, columns):
  monkeypatch.setenv("COLUMNS", str(columns))
  out = _Terminal()
  writer = MetricsWriter(tmp_path, 10, tensorboard=False, stream=out)
  line = writer.progress(4, FULL)
  assert len(line) < columns and line.startswith("step 4/10")
  assert out.getvalue().startswith("\r") and "\n" not in out.getvalue()
  writer.close()
  assert out.getvalue().endswith("\n")


def test_progress_survives_missing_and_nan_metrics(tmp_path):
  writer = MetricsWriter(tmp_path, 10, tensorboard=False, stream=io.StringIO())
  assert "reward" not in writer.progress(1, {"reward": math.nan, "length": None})


def test_final_line_is_the_file_and_a_run_that_goes_on_has_none(tmp_path, capsys):
  writer = MetricsWriter(tmp_path, 10, tensorboard=False)
  writer.finish({"accuracy_after": np.float32(0.5), "gap": math.inf, "name": "x", "ok": True})
  printed = capsys.readouterr().out.splitlines()[-1]
  want = {"accuracy_after": 0.5, "gap": None, "name": "x", "ok": True}
  assert json.loads(printed.removeprefix("final: ")) == want
  assert json.loads((tmp_path / "final.json").read_text()) == want
  MetricsWriter(tmp_path, 20, tensorboard=False).write(11, {"reward": 0.0})
  assert not (tmp_path / "final.json").exists()


# ---- intervals -----------------------------------------------------------------------------------


def test_wilson_bounds_solve_the_score_equation():
  # The bounds are the p0 for which |k/n - p0| = z sqrt(p0 (1 - p0) / n).
  for k, n in [(0, 5), (3, 10), (128, 256), (20, 20), (1, 1000)]:
    for bound in wilson(k, n):
      gap = abs(k / n - bound) - metrics_lib.Z95 * math.sqrt(bound * (1 - bound) / n)
      assert abs(gap) < 1e-9
  assert wilson(0, 0) == (0.0, 1.0)


def _outcomes(n, won, lost):
  before = [False] * won + [True] * lost + [False] * (n - won - lost)
  after = [True] * won + [False] * lost + [False] * (n - won - lost)
  return before, after


def test_paired_gain_covers_the_truth_about_95_percent_of_the_time():
  # Exact coverage by enumeration of all multinomial outcomes, for several truths and sizes.
  for n, p, q in [(20, 0.3, 0.05), (40, 0.05, 0.05), (40, 0.5, 0.1), (60, 0.02, 0.0)]:
    covered = 0.0
    for won, lost in itertools.product(range(n + 1), repeat=2):
      if won + lost > n:
        continue
      kept = n - won - lost
      if (q == 0 and lost) or 1 - p - q < 0:
        continue
      ways = math.comb(n, won) * math.comb(n - won, lost)
      chance = ways * p**won * q**lost * (1 - p - q) ** kept
      if chance < 1e-12:
        continue
      gain = paired_gain(*_outcomes(n, won, lost))
      covered += chance * (gain.low <= p - q <= gain.high)
    assert covered > 0.93, (n, p, q, covered)


def test_paired_gain_counts_and_holds_its_point_estimate():
  for n, won, lost in [(10, 3, 1), (10, 10, 0), (1, 1, 0), (256, 90, 4), (5, 0, 0)]:
    gain = paired_gain(*_outcomes(n, won, lost))
    assert gain.gain == (won - lost) / n and (gain.won, gain.lost, gain.problems) == (won, lost, n)
    assert -1 <= gain.low <= gain.gain <= gain.high <= 1
  assert paired_gain([], []) == (0.0, -1.0, 1.0, 0, 0, 0)
  with pytest.raises(UserError, match="2 problems before but 1"):
    paired_gain([True, False], [True])


def test_paired_gain_is_narrower_than_two_samples_when_problems_keep_their_outcome():
  before = [True] * 100 + [False] * 100
  after = [True] * 110 + [False] * 90
  gain = paired_gain(before, after)
  independent = 2 * 1.96 * math.sqrt(0.5 * 0.5 / 200 + 0.55 * 0.45 / 200)
  assert gain.high - gain.low < 0.5 * independent and gain.low > 0


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0, "0 s"), (59.6, "1 min 00 s"), (425, "7 min 05 s"), (12000, "3 h 20 min")],
)
def test_duration(seconds, text):
  assert metrics_lib.duration(seconds) == text


# ---- rollouts ------------------------------------------------------------------------------------


def _groups(n=3, g=2, t=4, **kwargs):
  rng = np.random.default_rng(1)
  arrays = {
    "prompt_id": np.arange(n) + 7,
    "prompts": [f"p{i}" for i in range(n)],
    "tokens": np.arange(n * g * t).reshape(n, g, t),
    "length": rng.integers(1, t + 1, (n, g)),
    "reward": rng.random((n, g)),
    "token_texts": lambda ids: [f"<{i}>" for i in ids],
  }
  return arrays, rollout_log.groups_of(**(arrays | kwargs))


def test_rollouts_hold_each_tokens_own_numbers_and_stop_at_the_length(tmp_path):
  logp = -np.arange(24.0).reshape(3, 2, 4)
  ratio = np.exp(logp / 10).reshape(6, 4)  # flat rows are read as [N, G, T]
  adv = np.arange(6.0).reshape(3, 2)
  arrays, groups = _groups(logp=logp, ratio=ratio, adv=adv, parts=np.ones((3, 2, 1)))
  path = rollout_log.write_rollouts(tmp_path, 10, groups, limit=2)
  assert path.name == "step_000010.jsonl"
  back = rollout_log.read_rollouts(path)
  assert [b["prompt_id"] for b in back] == [7, 8] and back[0]["step"] == 10
  for n, g in itertools.product(range(2), range(2)):
    sample = back[n]["samples"][g]
    assert len(sample["tokens"]) == sample["length"] == arrays["length"][n, g]
    assert sample["adv"] == adv[n, g]
    for t, token in enumerate(sample["tokens"]):
      assert token["text"] == f"<{arrays['tokens'][n, g, t]}>"
      assert token["logp"] == logp[n, g, t] and token["adv"] == adv[n, g]
      assert token["ratio"] == pytest.approx(ratio[2 * n + g, t], rel=1e-3)


def test_rollouts_stay_within_the_token_budget_and_say_the_whole_length(tmp_path):
  _, groups = _groups(
    n=2, g=4, t=500, length=np.full((2, 4), 500), token_budget=400, logp=np.full((2, 4, 500), -1.5)
  )
  path = rollout_log.write_rollouts(tmp_path, 1, groups)
  sample = rollout_log.read_rollouts(path)[0]["samples"][0]
  assert len(sample["tokens"]) == 50 and sample["length"] == 500
  assert path.stat().st_size < 60_000


def test_rollouts_turn_nan_into_null_and_refuse_a_wrong_shape(tmp_path):
  _, groups = _groups(adv=np.full((3, 2), np.nan))
  rollout_log.write_rollouts(tmp_path, 1, groups)
  with pytest.raises(UserError, match="logp has shape"):
    _groups(logp=np.zeros((3, 5, 4)))


def test_pieces_join_to_the_decoded_text_when_characters_span_tokens():
  text = "a é🙂\n日本 z\ufffd" + "🙂" * 3
  ids = list(text.encode())
  decode = lambda part: bytes(part).decode("utf-8", errors="replace")
  parts = rollout_log.pieces(decode, ids)
  assert len(parts) == len(ids) and "".join(parts) == text
  assert parts[2:4] == ["", "é"] and parts[4:8] == ["", "", "", "🙂"]
  cut = ids[:-1]
  assert "".join(rollout_log.pieces(decode, cut)) == decode(cut)
