"""Plans and needs of the language-model loop, on a random two-layer model: what the batch says is
what was sampled, judged and believed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from grpo_jax.models import decoder
from grpo_jax.rollout import tree
from grpo_jax.train import llm, setup, supply
from grpo_jax.types import Chain, Flat, Tree

TREE = Tree(branching=(3, 2), segment_tokens=2)


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return tiny.save_model(tmp_path_factory.mktemp("plans") / "model")


@pytest.fixture(scope="module")
def parts(model):
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(tiny.ROOT / "tests/train"))
    run = setup.prepare(tiny.make_config(model), lambda text: None, jax.devices()[:1])
  yield run
  run.pool.close()


def collect(parts, plan, count=4, **changes):
  s = dataclasses.replace(parts.sampling, **changes)
  draw = lambda n: parts.data.train[:n]
  return tiny.collected(s, parts.state.params, parts.pool, draw, count, 1, plan)


def low_digits(parts, tokens) -> float:
  """The reward of these tests, by the pool itself."""
  text = parts.sampling.tokenizer.decode([t for t in tokens if t != 15]).split("\n")[0]
  return float(parts.pool.score([text], [parts.data.train[0]], [len(tokens)]).reward[0])


def test_a_tree_s_rows_are_its_paths_and_every_node_is_trained_and_fed_once(parts):
  got = collect(parts, TREE)
  r, b = got.rollouts, got.batch
  assert r.reward.shape == (4, 9) and b.tokens.shape[0] == 4 * 6
  fwd = parts.score(parts.state.params, jax.tree.map(jnp.asarray, b))
  np.testing.assert_allclose(np.where(b.mask > 0, b.logp_sampler, 0), fwd.logp, atol=1e-5)
  assert b.mask.sum() == r.length[r.alive].sum() == got.counts["tokens_fed"]
  assert got.counts["tokens_fed"] < got.counts["tokens_fed_without_reuse"]
  ends = np.asarray(tree.ends(jax.tree.map(jnp.asarray, r)))
  assert ends.any() and r.alive.any() and (r.parent[:, :3] == -1).all()
  stop = set(parts.sampling.stop_ids)
  for n, path in np.ndindex(4, 6):
    row = n * 6 + path
    size = int(got.shown.length[n, path])
    tokens = b.tokens[row, :size].tolist()
    assert not stop & set(tokens[:-1]) and (tokens[-1] in stop) != got.shown.truncated[n, path]
    assert got.shown.reward[n, path] == pytest.approx(low_digits(parts, tokens))
    node = int(np.asarray(b.owner)[row, 0 if size <= 2 and tokens[-1] in stop else 1]) - 9 * n
    assert ends[n, node] and r.reward[n, node] == got.shown.reward[n, path]


def test_a_chain_s_values_are_means_of_continuations_that_equal_prefixes_share(parts):
  plan = Chain(interval=1, samples=4, cut=0.99)
  got, flat = collect(parts, plan), collect(parts, Flat())
  b = got.batch
  np.testing.assert_array_equal(b.tokens, flat.batch.tokens)
  value, there = np.asarray(b.unit_reward), np.asarray(b.unit_mask) > 0
  assert np.isnan(value[:, 0]).all()
  np.testing.assert_array_equal(~np.isnan(value[:, 1:]), there[:, 1:])
  known, width = {}, b.tokens.shape[1]
  for row, unit in np.argwhere(there[:, 1:]):
    start = int(np.argmax((b.unit[row] == unit + 1) & (b.mask[row] > 0)))
    prefix = (row // 4, tuple(b.tokens[row, :start].tolist()))
    assert known.setdefault(prefix, value[row, unit + 1]) == value[row, unit + 1]
    assert start < width
  assert got.counts["states"] == len(known) > 4
  spread = np.asarray(list(known.values()))
  assert spread.min() >= 0 and spread.max() <= 1 and spread.std() > 0.05
  assert got.counts["tokens_of_values"] > 4 * len(known)


def test_values_are_those_of_a_policy_that_can_be_counted_out(parts):
  """A cut before the last token of the budget: continuations are one token, so that the value is
  the mean of the reward over the next token's distribution, within its standard error."""
  plan = Chain(interval=1, samples=256, cut=2.0)
  got = collect(parts, plan, count=2, budget=2)
  b, worst, seen = got.batch, 0.0, 0
  for row in np.flatnonzero(np.asarray(b.unit_mask)[:, 2] > 0)[:4]:
    n = row // 4
    ids = [*parts.sampling.tokenizer.encode(got.problems[n].prompt), int(b.tokens[row, 0])]
    config = parts.sampling.config
    z = decoder.logits(config, parts.state.params, jnp.asarray([ids]), jnp.asarray([len(ids)]))
    p = np.asarray(jax.nn.softmax(z[0, -1]))
    stops = parts.sampling.stop_ids
    rewards = np.asarray([low_digits(parts, [int(b.tokens[row, 0]), s]) for s in stops])
    mean = float((p[list(stops)] * rewards).sum())  # what does not stop is worth 0
    square = float((p[list(stops)] * rewards**2).sum())
    error = max(np.sqrt(max(square - mean**2, 1e-9) / 256), 1e-4)
    worst, seen = max(worst, abs(float(b.unit_reward[row, 2]) - mean) / error), seen + 1
  assert seen and worst < 4


def test_units_of_a_text_get_the_rewards_of_their_lines(model, monkeypatch):
  monkeypatch.syspath_prepend(str(tiny.ROOT / "tests/train"))
  part = {"name": "tiny_rewards:each_line", "units": 2, "verdict": True}
  changes = {"reward.parts": (part,), "sample.units": 3, "sample.cut": "+"}
  run = setup.prepare(tiny.make_config(model, **changes), lambda text: None, jax.devices()[:1])
  got = collect(run, Flat())
  run.pool.close()
  b, several = got.batch, 0
  for row in range(16):
    text, size = got.texts[row // 4][row % 4], int(b.mask[row].sum())
    pieces = text.split("+")
    several += len(pieces) > 1
    want = [len(x) % 2 for x in pieces][:2]
    assert b.unit_reward[row].tolist() == want + [0] * (3 - len(want))
    written = [run.sampling.tokenizer.token_texts[t] for t in b.tokens[row, :size].tolist()]
    cuts = np.cumsum([0] + [t == "+" for t in written])[:-1]
    np.testing.assert_array_equal(b.unit[row, :size], np.minimum(cuts, 2))
    assert got.rollouts.reward[row // 4, row % 4] == sum(want)
  assert several > 1


RUNS = {
  "tree": ("spo_segment", {"form": "tree", "branching": (2, 2), "segment_tokens": 2}, {}),
  "chain": ("spo_segment", {"interval": 2, "samples": 2}, {}),
  "drift": ("spo_single_stream", {}, {"batch.group": 1}),
  "belief": (
    "igpo",
    {"penalty": None},
    {"sample.units": 3, "sample.cut": "+", "sample.gold": "={answer}"},
  ),
}


@pytest.mark.parametrize(
  "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "belief")) for k in RUNS]
)
def test_a_run_with_this_plan_or_need_goes_to_its_end(kind, model, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tiny.ROOT / "tests/train"))
  tiny.one_device(monkeypatch)
  method, args, changes = RUNS[kind]
  c = tiny.make_config(model, **{"steps": 2, "method": method, "method_args": args} | changes)
  seen, remember = [], supply.remember
  monkeypatch.setattr(supply, "remember", lambda *a: seen.append(1) or remember(*a))
  final = llm.run(c, tmp_path, lambda text: None)
  assert final["steps"] == 2
  rows = [r for r in tiny.metrics.read_metrics(tmp_path) if r["kind"] == "train"]
  assert all(np.isfinite(r["loss"]) and r["logp_gap"] < 1e-4 for r in rows)
  assert bool(seen) == (kind == "drift")
  if kind == "drift":  # the first visit of a prompt has none
    assert rows[0]["drift"] == 0
