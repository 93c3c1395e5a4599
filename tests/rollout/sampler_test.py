"""Completions: the distribution, the trainer's log-probabilities, stops, and slots."""

import dataclasses
import functools
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from grpo_jax.models.policy import make_forward
from grpo_jax.rollout import sampler
from grpo_jax.rollout.choose import Choice

# One layer: on the CPU the sampler's layers are unrolled, so each of them is compiled. The tests of
# log-probabilities have two, unrolled and scanned.
MODEL = dataclasses.replace(tiny.FAMILIES["llama"], num_layers=1)
STOPS = (0, 1, 2, 6, 8, 10, 15, 19, 24)  # 0 is what fills the padding, too
N, G, T = 3, 6, 4
PROMPT, LENGTH, _ = tiny.problem(MODEL)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TRUNK = np.asarray([3, 1, 30], np.int32)


some_slots = pytest.mark.parametrize("slots", [1, 4])


def keys_of(seed, n=N):
  return jax.random.split(jax.random.key(seed), n)


def draw(prompt=PROMPT, length=LENGTH, keys=None, config=MODEL, trunk=None, **options):
  options = {"group": G, "budget": T, "stop_ids": STOPS} | options
  keys = keys_of(0, len(prompt)) if keys is None else keys
  arrays = tiny.params_of(config), prompt, length, keys
  lowered = sampler.sample.lower(config, *arrays, trunk=trunk, **options)
  # Half the time to compile; these arrays are small.
  compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
  return jax.device_get(compiled(*arrays, trunk=trunk))


base = functools.cache(draw)


def same_completions(a, b):
  """Tokens equal; log-probabilities to rounding."""
  for field in ("tokens", "length", "stopped"):
    np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)
  np.testing.assert_allclose(a.logp, b.logp, rtol=0, atol=1e-5)


def upto(out):
  return np.arange(out.tokens.shape[-1]) < out.length[..., None]


# ---- what is sampled ----------------------------------------------------------------------------


def test_pairs_of_tokens_have_the_frequencies_of_the_model():
  """4096 samples of the first two tokens against numpy, by chi-square; a stop has no successor."""
  config = dataclasses.replace(MODEL, vocab_size=9)
  params = tiny.params_of(config)
  prompt, temperature, count = np.asarray([4, 0, 7]), 1.3, 4096
  out = draw(
    prompt[None].astype(np.int32), np.asarray([3], np.int32), config=config, group=count,
    budget=2, stop_ids=(2,), choice=Choice(temperature=temperature), slots=512,
  )  # fmt: skip
  first = np.exp(tiny.naive_logp(config, params, prompt, np.zeros(1, int), temperature)[0])
  expected = np.zeros((9, 10))
  for a in range(9):
    then = np.exp(tiny.naive_logp(config, params, prompt, np.asarray([a, 0]), temperature)[1])
    expected[a] = first[a] * (np.eye(10)[9] if a == 2 else np.append(then, 0.0))
  second = np.where(out.length[0] == 1, 9, out.tokens[0, :, 1])
  found = np.zeros((9, 10))
  np.add.at(found, (out.tokens[0, :, 0], second), 1)
  assert not found[expected == 0].any()
  order = np.argsort(expected.ravel())
  rare = np.cumsum(expected.ravel()[order]) * count < 8  # pooled into one cell
  cells = [np.append(x.ravel()[order][~rare], x.ravel()[order][rare].sum())
           for x in (found, expected * count)]  # fmt: skip
  statistic = np.sum((cells[0] - cells[1]) ** 2 / cells[1])
  freedom = len(cells[0]) - 1
  assert freedom > 20
  p_value = 1 - jax.scipy.special.gammainc(freedom / 2, statistic / 2)
  assert 1e-3 < p_value < 1 - 1e-3


def test_greedy_choice_is_the_argmax_of_a_full_forward_pass_at_every_step():
  out = draw(group=1, choice=Choice(temperature=0.0))
  params = tiny.params_of(MODEL)
  for n in range(N):
    ids = list(PROMPT[n, : LENGTH[n]])
    for t in range(T):
      token = int(np.argmax(tiny.naive_logits(MODEL, params, ids)[-1]))
      assert out.tokens[n, 0, t] == token
      ids.append(token)
      if token in STOPS:
        break
    assert out.length[n, 0] == t + 1


# ---- the trainer's numbers ----------------------------------------------------------------------


@pytest.mark.parametrize(
  "config, temperature, slots, trunk, unroll",
  [
    (MODEL, 1.0, None, None, None),
    (tiny.FAMILIES["qwen2"], 0.7, 2, None, False),
    (tiny.FAMILIES["qwen3"], 1.3, 1, TRUNK, True),
  ],
  ids=["llama", "qwen2 scanned", "qwen3 unrolled"],
)
def test_logp_is_that_of_the_trainer_below_1e_5(config, temperature, slots, trunk, unroll):
  options = {"choice": Choice(temperature=temperature), "slots": slots, "unroll": unroll}
  out = base() if config == MODEL else draw(config=config, trunk=trunk, **options)
  batch = tiny.batch_of(PROMPT, LENGTH, out.tokens, upto(out))
  forward = make_forward(
    config, temperature=temperature, chunk=16, trunk=() if trunk is None else tuple(trunk.tolist())
  )
  scored = np.asarray(jit(forward)(tiny.params_of(config), batch).logp).reshape(N, G, T)
  assert np.ptp(scored[upto(out)]) > 2
  np.testing.assert_allclose(out.logp, scored, rtol=0, atol=1e-5)
  text = np.concatenate([[] if trunk is None else trunk, PROMPT[0, : LENGTH[0]]]).astype(int)
  size = out.length[0, 0]
  own = out.tokens[0, 0, :size]
  naive = tiny.naive_logp(config, tiny.params_of(config), text, own, temperature)
  np.testing.assert_allclose(out.logp[0, 0, :size], naive[np.arange(size), own], rtol=0, atol=2e-5)


# ---- stops and lengths --------------------------------------------------------------------------


def test_a_completion_ends_with_its_first_stop_token_and_nothing_follows():
  out = base()
  seen = set()
  for n, g in np.ndindex(N, G):
    size = out.length[n, g]
    stops = np.isin(out.tokens[n, g, :size], STOPS)
    assert not stops[:-1].any()
    assert out.stopped[n, g] == stops[-1]
    assert 1 <= size <= T and (out.stopped[n, g] or size == T)
    assert not out.tokens[n, g, size:].any() and not out.logp[n, g, size:].any()
    assert np.all(out.logp[n, g, :size] < 0)  # the stop token's too
    seen |= set(out.tokens[n, g, :size][stops].tolist())
  assert len(seen) > 1 and not out.stopped.all()
  assert np.any(out.stopped & (out.length == T)) and np.any(out.length < T)


def test_a_budget_of_one_gives_the_first_token_of_a_longer_budget():
  one, longer = draw(budget=1, stop_ids=(), slots=2), base()
  np.testing.assert_array_equal(one.tokens[..., 0], longer.tokens[..., 0])
  np.testing.assert_allclose(one.logp[..., 0], longer.logp[..., 0], rtol=0, atol=1e-6)
  assert np.all(one.length == 1) and not one.stopped.any() and one.steps == G // 2 - 1


# ---- what a completion does not depend on -------------------------------------------------------


@some_slots
def test_tokens_are_the_same_for_any_number_of_slots(slots):
  same_completions(base(slots=slots), base())


def test_tokens_do_not_depend_on_the_cut_or_order_of_the_batch():
  keys = keys_of(0)
  whole = base()
  order = np.asarray([2, 0, 1])
  moved = draw(PROMPT[order], LENGTH[order], keys[order])
  same_completions(moved, type(whole)(*(x[order] for x in whole[:-1]), whole.steps))
  for n in range(N):
    alone = draw(PROMPT[n : n + 1], LENGTH[n : n + 1], keys[n : n + 1])
    same_completions(alone, type(whole)(*(x[n : n + 1] for x in whole[:-1]), whole.steps))


def test_tokens_do_not_depend_on_the_prompt_bucket_or_what_fills_it():
  junk = np.pad(PROMPT, ((0, 0), (0, 8)), constant_values=STOPS[0])
  junk = np.where(np.arange(16) < LENGTH[:, None], junk, STOPS[0]).astype(np.int32)
  same_completions(draw(junk), base())


def test_equal_keys_give_equal_bits_and_other_keys_other_noise():
  again = draw()
  for a, b in zip(base(), again, strict=True):
    np.testing.assert_array_equal(a, b)
  other = draw(keys=keys_of(1))
  # Two draws of a first token agree by chance at times; of 18, half is far too many.
  assert np.mean(other.tokens[..., 0] == base().tokens[..., 0]) < 0.5
  twins = draw(np.tile(PROMPT[2:], (3, 1)), np.tile(LENGTH[2:], 3))
  assert len({twins.tokens[n, g].tobytes() for n, g in np.ndindex(N, G)}) > 9


# ---- work ---------------------------------------------------------------------------------------


def steps_of(length, slots):
  """Decode steps when each prompt's next completion starts where one has just ended."""
  ends = []
  for row in length:
    busy = [0] * slots
    for size in row:
      heapq.heappush(busy, heapq.heappop(busy) + int(size))
    ends.append(max(busy))
  return max(ends) - 1  # the prefill gives the first token


def test_the_loop_ends_with_the_longest_completion():
  """Nearly every token stops: no step is made that nobody needs."""
  stops = tuple(range(4, MODEL.vocab_size))
  out = draw(budget=32, stop_ids=stops)
  assert out.steps == out.length.max() - 1 < 10


@some_slots
def test_an_ended_slot_takes_the_next_completion_at_once(slots):
  out = base(slots=slots)
  assert out.steps == steps_of(out.length, slots)
  waves = [out.length[:, i : i + slots].max() for i in range(0, G, slots)]
  assert out.steps < sum(waves) - 1  # what waiting for the slowest would take


def test_the_prompt_is_prefilled_once_a_group():
  """By the compiler's count, in which the decode loop counts for one step: 256 prompt tokens and
  G of a step, where repeated prompts would be G * 257."""

  def flops(group):
    lowered = sampler.sample.lower(
      MODEL, tiny.params_of(MODEL), jax.ShapeDtypeStruct((1, 256), jnp.int32),
      jax.ShapeDtypeStruct((1,), jnp.int32), keys_of(0, 1), group=group, budget=8, stop_ids=(),
    )  # fmt: skip
    return lowered.cost_analysis()["flops"]

  assert flops(16) < 1.5 * flops(1)
