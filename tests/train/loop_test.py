"""The loop itself: programs compiled, stale weights, hostile rewards, the plan, clear refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from grpo_jax import methods, sharding
from grpo_jax.errors import UserError
from grpo_jax.rollout import collect, flat
from grpo_jax.run import metrics
from grpo_jax.train import llm, setup
from grpo_jax.train.outlook import memory
from grpo_jax.types import Flat


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return tiny.save_model(tmp_path_factory.mktemp("loop") / "model")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  tiny.one_device(monkeypatch)
  monkeypatch.syspath_prepend(str(tiny.ROOT / "tests/train"))


def prepare(model, **changes):
  return setup.prepare(tiny.make_config(model, **changes), lambda text: None)


def put(parts, got):
  rollouts = sharding.put(got.rollouts, sharding.replicated(parts.mesh))
  return rollouts, sharding.put(got.batch, sharding.rows(parts.mesh))


make_mesh = sharding.make_mesh


# ---- compiled programs ---------------------------------------------------------------------------


class Compiled:
  """Names of the functions of which programs were built, by jax's own events."""

  def __init__(self):
    self.names: list[str] = []

  def __call__(self, event, duration, **kwargs):
    if "backend_compile" in event:
      self.names.append(kwargs["fun_name"].removeprefix("jit(").removesuffix(")"))


@pytest.mark.slow
def test_50_steps_of_random_lengths_compile_one_program_a_bucket(tmp_path, monkeypatch):
  jax.config.update("jax_disable_most_optimizations", True)
  model = tiny.save_model(tmp_path / "model")
  c = tiny.make_config(model, **{"sample.max_new_tokens": 12, "batch.prompts": 2})
  parts = setup.prepare(c, lambda text: None)
  random = np.random.default_rng(0)
  seen = Compiled()
  jax.monitoring.register_event_duration_secs_listener(seen)
  state, prompts, shapes = parts.state, set(), set()
  generate = collect.generate

  def cut(*args):
    """Answers of random lengths: the policy's own would be of much the same length."""
    (tokens, logp, length, stopped), *rest = generate(*args)
    length = np.minimum(length, random.integers(1, 13)).astype(np.int32)
    keep = np.arange(tokens.shape[-1]) < length[..., None]
    return (tokens * keep, logp * keep, length, stopped), *rest

  monkeypatch.setattr(flat, "generate", cut)
  for step in range(50):
    more = "1" * int(random.integers(0, 14))
    problems = [dataclasses.replace(p, prompt=p.prompt + more) for p in parts.data.train[:2]]
    got = tiny.collected(
      parts.sampling, state.params, parts.pool, lambda n, p=problems: p, 2, step, Flat()
    )
    rollouts, batch = put(parts, got)
    prompts.add(batch.prompt_tokens.shape)
    shapes.add((batch.prompt_tokens.shape, batch.tokens.shape))
    old = parts.score(state.params, batch)
    key = jax.random.key(step)
    batch = batch.replace(logp_old=old.logp)
    state, _, _ = tiny.updated(parts, state, rollouts, batch, key)
  jax.config.update("jax_disable_most_optimizations", False)
  jax.monitoring.unregister_event_duration_listener(seen)
  assert len(prompts) >= 3 and len(shapes) >= 7
  counts = {name: seen.names.count(name) for name in ("sample", "forward", "credit_of", "update")}
  a_shape = dict.fromkeys(("forward", "credit_of", "update"), len(shapes))
  assert counts == {"sample": len(prompts)} | a_shape


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_run_compiles_nothing_after_the_first_step_of_equal_shapes(
  model, tmp_path, monkeypatch, devices
):
  c = tiny.make_config(model, **{"steps": 3, "log.rollouts_every": 1, "checkpoint.every": 3})
  if devices == 8:  # shardings that XLA chose for the new state would be compiled for again
    monkeypatch.setattr(sharding, "make_mesh", make_mesh)
    with c.unlocked():
      c.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  said = []
  llm.run(c, tmp_path, said.append)
  rows = [r for r in metrics.read_metrics(tmp_path) if r["kind"] == "train"]
  assert rows[0]["compiles"] >= 1
  assert rows[1]["compiles"] == rows[2]["compiles"]
  assert not [text for text in said if "programs compiled" in text]


# ---- weights, rewards ----------------------------------------------------------------------------


def test_sampling_with_stale_weights_shows_in_logp_gap(model):
  """Pain 10: the gap is rounding as long as sampler and trainer share their weights."""
  parts = prepare(model)
  draw = lambda n: parts.data.train[:n]
  state, stale = parts.state, jax.tree.map(lambda x: x.copy(), parts.state.params)
  gaps = {"same": [], "stale": []}
  for step, kind in enumerate(("same", "same", "stale"), start=1):
    params = stale if kind == "stale" else state.params
    got = tiny.collected(parts.sampling, params, parts.pool, draw, 8, step, Flat())
    state, found, _ = tiny.updated(parts, state, *put(parts, got), jax.random.key(step))
    gaps[kind].append(float(found["max_logp_gap"]))
  assert max(gaps["same"]) < 1e-5
  assert min(gaps["stale"]) > 1e-3


def test_hostile_rewards_are_counted_and_the_run_goes_on(model, tmp_path, capsys):
  part = {"name": "tiny_rewards:hostile", "threshold": 0.5}
  changes = {"reward.parts": (part,), "reward.timeout_s": 0.05, "steps": 2}
  c = tiny.make_config(model, **changes)
  said = []
  final = llm.run(c, tmp_path, said.append)
  assert final["steps"] == 2
  rows = [r for r in metrics.read_metrics(tmp_path) if r["kind"] == "train"]
  kinds = {k.split("/")[1] for row in rows for k in row if k.startswith("reward_failed/")}
  assert {"timeout", "exception", "crash"} <= kinds
  for row in rows:
    counted = sum(v for k, v in row.items() if k.startswith("reward_failed/"))
    assert 0 < row["reward_failed"] == counted <= 32
    assert np.isfinite(row["loss"]) and row["alive"] == 1
    if row["reward_failed"] > 16:
      assert any(f"step {row['step']}: most rewards failed" in text for text in said)


# ---- the plan, the live line ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_plan_comes_before_any_compilation_and_its_memory_is_about_xlas(model):
  c = tiny.make_config(model, **{"batch.group": 16, "sample.max_new_tokens": 32})
  seen = Compiled()
  jax.monitoring.register_event_duration_secs_listener(seen)
  parts = setup.prepare(c, lambda text: None)
  text = setup.outlook(c, parts)
  assert not {"sample", "forward", "update"} & set(seen.names)
  assert "plan: 8 prompts x 16 completions = 128 a step" in text
  got = tiny.collected(
    parts.sampling, parts.state.params, parts.pool, lambda n: parts.data.train[:n], 8, 1, Flat()
  )
  rollouts, batch = put(parts, got)
  credit = parts.credit(parts.state.method_state, parts.state.step, rollouts, batch)
  built = parts.update.lower(parts.state, rollouts, batch, credit, jax.random.key(0)).compile()
  jax.monitoring.unregister_event_duration_listener(seen)
  assert {"sample", "update"} <= set(seen.names)
  found = built.memory_analysis()
  prompt, completion = batch.prompt_tokens.shape[1], batch.tokens.shape[1]
  plan = memory(c, parts, prompt, completion)
  ours = sum(plan.values()) - plan["state"]
  assert 1 / 3 < ours / found.temp_size_in_bytes < 3, (plan, found.temp_size_in_bytes)
  assert 0.9 < plan["state"] / found.alias_size_in_bytes < 1.1


def test_the_time_left_is_the_median_steps_not_that_of_the_step_that_compiles(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, 100, tensorboard=False)
  writer.progress(1, {"time_total": 300.0})
  for step in range(2, 11):
    line = writer.progress(step, {"time_total": 2.0})
  assert line.endswith("left 3 min 00 s")


# ---- refusals ------------------------------------------------------------------------------------


def test_a_need_that_no_loop_supplies_is_an_error_that_names_it(model, monkeypatch):
  odd = dataclasses.replace(methods.get("grpo"), needs=("ref", "critic_of_yesterday"))
  monkeypatch.setattr(methods, "get", lambda name, **kwargs: odd)
  with pytest.raises(UserError, match="method=grpo: .*'critic_of_yesterday'"):
    prepare(model)


def test_a_run_that_diverges_stops_and_says_what_to_do(model, tmp_path, monkeypatch):
  make_update = setup.make_update

  def broken(*args, **kwargs):
    update = make_update(*args, **kwargs)

    def ruin(*args):
      state, found, per_token = update(*args)
      return state, found | {"loss": found["loss"] * float("nan")}, per_token

    return ruin

  monkeypatch.setattr(setup, "make_update", broken)
  with pytest.raises(UserError, match=r"step 1: loss .*: the run has diverged; lower optimizer.lr"):
    llm.run(tiny.make_config(model), tmp_path, lambda text: None)
  assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["nonfinite"] >= 1
