"""Attention over shared prompts against loops in numpy, in float64 and float32."""

import contextlib
import functools
import subprocess
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wide import wide

from pallas_kernels import prefix_attention as attention

N = 3


class Case(NamedTuple):
  p: int  # padded prompt
  g: int
  t: int
  h: int
  kv: int
  d: int
  trunk: int = 0  # keys before all prompts
  packed: bool = False  # g * t tokens cut into completions of random lengths
  window: int | None = None
  softcap: float | None = None
  sink: bool = False


CASES = (
  Case(5, 3, 4, 4, 2, 6),
  Case(7, 2, 1, 3, 1, 4, trunk=3),
  Case(9, 1, 0, 4, 2, 4),
  Case(1, 2, 7, 2, 2, 2),
  Case(4, 1, 11, 4, 1, 4, trunk=2, packed=True),
  Case(6, 2, 5, 4, 2, 4, window=3, softcap=1.5),
  Case(5, 1, 9, 2, 1, 4, trunk=3, packed=True, window=4, sink=True),
)
cases = pytest.mark.parametrize("case", CASES, ids=str)
implementations = pytest.mark.parametrize("implementation", ["xla", "reference"])
few = settings(max_examples=6, deadline=None)
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}  # to compile
jit = functools.partial(jax.jit, compiler_options=QUICK)


class Data(NamedTuple):
  q: np.ndarray
  k: np.ndarray
  v: np.ndarray
  trunk_k: np.ndarray
  trunk_v: np.ndarray
  cotangent: np.ndarray  # 0 at padded positions
  length: np.ndarray
  segment: np.ndarray  # [N, X] which completion; -1 is padding of a packed row


def draw(case, seed, lengths=None):
  p, g, t, h, kv, d, c, packed, *_ = case
  rng = np.random.default_rng(seed)
  q, out = (rng.normal(size=(N, p + g * t, h, d)) for _ in range(2))
  k, v = (rng.normal(size=(N, p + g * t, kv, d)) for _ in range(2))
  trunk = (rng.normal(size=(c, kv, d)) for _ in range(2))
  length = rng.integers(1, p + 1, N) if lengths is None else np.minimum(lengths, p)
  segment = np.tile(np.repeat(np.arange(g), t), (N, 1))
  if packed:
    segment = np.sort(rng.integers(0, 4, (N, g * t)), axis=1)
    segment[segment == 3] = -1
  out[:, :p][np.arange(p)[None] >= length[:, None]] = 0
  out[:, p:][segment < 0] = 0
  return Data(2 * q, k, v, *trunk, out, length, segment)


def visible(case, data, n, i):
  """Indices into [trunk; prompt; completions] that query i of row n may see, oldest first."""
  start = case.trunk
  if i < case.p:
    see = list(range(start + min(i + 1, data.length[n])))
  else:
    own = data.segment[n]
    same = [j for j in range(i - case.p + 1) if own[j] == own[i - case.p]]
    see = [*range(start + data.length[n]), *(start + case.p + j for j in same)]
  return see if case.window is None else see[-case.window :]  # positions have no gaps


def loops(case, data):
  """Value and gradients (q, k, v, trunk k, trunk v) of sum(out * cotangent), a query at a time."""
  q, c = data.q, case.trunk
  both = ((data.trunk_k, data.k), (data.trunk_v, data.v))
  k, v = (np.stack([np.concatenate([first, row]) for row in rest]) for first, rest in both)
  out, dq, dk, dv = (np.zeros(a.shape) for a in (q, q, k, v))
  scale, share = q.shape[-1] ** -0.5, case.h // case.kv
  for n, i, h in np.ndindex(q.shape[:3]):
    if case.p > i >= data.length[n] or (i >= case.p and data.segment[n, i - case.p] < 0):
      continue
    see = visible(case, data, n, i)
    keys, values, grad = k[n, see, h // share], v[n, see, h // share], data.cotangent[n, i, h]
    score, slope = keys @ q[n, i, h] * scale, 1
    if case.softcap is not None:
      score = case.softcap * np.tanh(score / case.softcap)
      slope = 1 - (score / case.softcap) ** 2
    weight = np.exp(score)
    weight /= weight.sum() + case.sink
    out[n, i, h] = weight @ values
    back = values @ grad
    back = weight * (back - weight @ back) * slope * scale
    dq[n, i, h] = back @ keys
    np.add.at(dk, (n, see, h // share), back[:, None] * q[n, i, h])
    np.add.at(dv, (n, see, h // share), weight[:, None] * grad)
  return out, dq, dk[:, c:], dv[:, c:], dk[:, :c].sum(0), dv[:, :c].sum(0)


@functools.cache
def compiled(case, implementation, is_wide):
  del is_wide  # an entry for each, so that neither is used under the other's types

  def run(q, k, v, trunk_k, trunk_v, cotangent, length, segment):
    def call(q, k, v, trunk_k, trunk_v):
      layout = {"segment": segment} if case.packed else {"group": case.g}
      return attention.prefix_attention(
        q, k, v, length,
        num_prefix=case.p,
        trunk=(trunk_k, trunk_v) if case.trunk else None,
        implementation=implementation,
        window=case.window,
        softcap=case.softcap,
        sink=case.sink,
        **layout,
      )  # fmt: skip

    out, back = jax.vjp(call, q, k, v, trunk_k, trunk_v)
    return out, *back(cotangent)

  return jit(run)


def run(case, data, implementation="xla", dtype=np.float32):
  """Value and gradients, as `loops` gives them: outputs at padded positions are put to 0."""
  ids = (np.asarray(a, np.int32) for a in (data.length, data.segment))
  arrays = (np.asarray(a, dtype) for a in data[:6])
  out, *grads = compiled(case, implementation, dtype == np.float64)(*arrays, *ids)
  assert out.dtype == dtype
  return np.where(used(case, data)[..., None, None], out, 0), *map(np.asarray, grads)


def used(case, data):
  prompt = np.arange(case.p)[None] < data.length[:, None]
  return np.concatenate([prompt, data.segment >= 0], axis=1)


NAMES = ("out", "dq", "dk", "dv", "d trunk_k", "d trunk_v")


def close(found, expected, atol):
  for name, a, b in zip(NAMES, found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


@cases
@implementations
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_and_gradients_equal_loops(case, implementation, dtype):
  def check(seed, lengths):
    data = draw(case, seed, lengths)
    found = run(case, data, implementation, dtype)
    close(found, loops(case, data), 1e-12 if dtype == np.float64 else 1e-5)

  lengths = st.lists(st.integers(1, 9), min_size=N, max_size=N)
  check = few(given(seed=st.integers(0, 2**20), lengths=lengths)(check))
  with wide() if dtype == np.float64 else contextlib.nullcontext():
    check()


@cases
@implementations
def test_what_padding_holds_changes_no_bit_and_its_outputs_and_gradients_are_0(
  case, implementation
):
  data = draw(case, 1, (1, 4, 2))
  padded = ~used(case, data)
  assert padded[:, case.p :].any() == case.packed
  poison = lambda a, x: np.where(padded[..., None, None], x, a)
  moved = {x: poison(getattr(data, x), np.nan) for x in ("q", "k", "v", "cotangent")}
  raw = compiled(case, implementation, False)
  found, clean = (
    raw(*(np.asarray(a, np.float32) for a in d[:6]), *(a.astype(np.int32) for a in d[6:]))
    for d in (data._replace(**moved), data)
  )
  for name, a, b in zip(NAMES, found, clean, strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)
  for a in found[:4]:
    assert not np.asarray(a)[padded].any()


@implementations
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[4]], ids=str)
def test_a_completion_changes_no_bit_of_the_others_or_of_the_prompt(case, implementation):
  data = draw(case, 3)
  first = np.concatenate([np.zeros((N, case.p), bool), data.segment == 0], axis=1)
  rng = np.random.default_rng(0)
  moved = data._replace(
    **{x: np.where(first[..., None, None], rng.normal(size=a.shape), a)
       for x, a in zip("qkv", data[:3], strict=True)}
  )  # fmt: skip
  before, after = run(case, data, implementation), run(case, moved, implementation)
  own = np.arange(first.shape[1])[None] >= case.p
  for i, (name, a, b) in enumerate(zip(NAMES[:4], before[:4], after[:4], strict=True)):
    assert np.abs(a - b)[first].max() > 1e-3, name
    # The prompt's keys collect gradient from the changed completion; its outputs do not change.
    same = ~first if i < 2 else ~first & own
    np.testing.assert_array_equal(a[same], b[same], err_msg=name)


@implementations
def test_permuted_completions_give_permuted_outputs_and_gradients(implementation):
  case = CASES[0]
  data = draw(case, 4)
  order = np.concatenate([np.arange(case.p), *(case.p + case.t * x + np.arange(case.t)
                                               for x in (2, 0, 1))])  # fmt: skip
  moved = {n: getattr(data, n)[:, order] for n in ("q", "k", "v", "cotangent")}
  plain, found = run(case, data, implementation), run(case, data._replace(**moved), implementation)
  close(found[:4] + plain[4:], (*(a[:, order] for a in plain[:4]), *plain[4:]), 2e-6)


@implementations
def test_a_group_of_one_is_plain_causal_attention(implementation):
  case = Case(4, 1, 5, 4, 2, 4)
  whole = Case(9, 1, 0, 4, 2, 4)
  data = draw(case, 5, [4] * N)
  plain = data._replace(length=np.full(N, 9), segment=data.segment[:, :0])
  close(run(case, data, implementation), loops(whole, plain), 1e-5)
  f32 = (np.asarray(a, np.float32) for a in data[:3])
  call = functools.partial(attention.prompt_attention, implementation=implementation)
  out = jit(call)(*f32, jnp.full(N, 9))
  np.testing.assert_allclose(out, loops(whole, plain)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("part", ["prompt", "own"])
def test_large_scores_in_either_part_stay_exact(part):
  """Scores of some thousands in one part: the common maximum is then that part's."""
  case = CASES[0]
  data = draw(case, 6)
  loud = slice(case.p) if part == "prompt" else slice(case.p, None)
  data.k[:, loud] *= 2e3
  data = Data(*(a.astype(np.float32).astype(np.float64) for a in data[:6]), *data[6:])
  assert all(np.isfinite(a).all() for a in run(case, data))
  with wide():
    found, expected = (run(case, data, name, np.float64) for name in ("xla", "reference"))
  for name, a, b in zip(NAMES, found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("case", [CASES[0], CASES[3], Case(6, 4, 2, 3, 1, 2)], ids=str)
def test_decoding_gives_the_last_row_of_the_whole_form(case):
  """S slots of a prompt at different ages, their own columns in any order of a longer cache."""
  p, g, t, _, kv, d, *_ = case
  data = draw(case, 7)
  rng = np.random.default_rng(7)
  age = rng.integers(1, t + 1, (N, g))  # own tokens a slot has seen
  q, k, v, out = (a[:, p:].reshape(N, g, t, -1, d) for a in (*data[:3], loops(case, data)[0]))
  cache_k, cache_v = rng.normal(size=(2, N, kv, g, t + 2, d))
  shown = np.zeros((N, g, t + 2), bool)
  for n, s in np.ndindex(N, g):
    for i, column in enumerate(rng.permutation(t + 2)[: age[n, s]]):
      cache_k[n, :, s, column], cache_v[n, :, s, column] = k[n, s, i], v[n, s, i]
      shown[n, s, column] = True
  last = lambda a: np.stack([[a[n, s, age[n, s] - 1] for s in range(g)] for n in range(N)])
  prefix = (a[:, :p].transpose(0, 2, 1, 3) for a in data[1:3])
  f32 = lambda *arrays: (jnp.asarray(a, jnp.float32) for a in arrays)
  found = jit(attention.decode_attention)(
    *f32(last(q), *prefix), jnp.asarray(data.length, jnp.int32), *f32(cache_k, cache_v), shown
  )
  np.testing.assert_allclose(found, last(out), rtol=0, atol=1e-5)


def decode_loops(q, k_prefix, v_prefix, length, k, v, visible, softcap, sink):
  out = np.zeros(q.shape)
  share = q.shape[3] // k.shape[1]
  for n, s, a, h in np.ndindex(q.shape[:4]):
    see, j = visible[n, s, a], h // share
    keys, values = (
      np.concatenate([x[n, j, : length[n]], y[n, j, s, see]])
      for x, y in ((k_prefix, k), (v_prefix, v))
    )
    score = keys @ q[n, s, a, h] / np.sqrt(q.shape[-1])
    weight = np.exp(score if softcap is None else softcap * np.tanh(score / softcap))
    out[n, s, a, h] = weight @ values / (weight.sum() + sink)
  return out


@implementations
@pytest.mark.parametrize("softcap, sink", [(None, False), (1.5, True)])
def test_decoding_a_few_queries_a_slot_equals_loops(implementation, softcap, sink):
  rng = np.random.default_rng(9)
  q, k, v = (rng.normal(size=(N, *s)) for s in ((4, 2, 6, 4), (3, 4, 7, 4), (3, 4, 7, 4)))
  prefix, length = rng.normal(size=(2, N, 3, 5, 4)), np.asarray([1, 5, 3])
  visible = rng.random((N, 4, 2, 7)) < 0.5
  visible[0, 1] = False  # a slot that has only the prompt
  args = q, *prefix, length, k, v, visible
  with wide():
    options = {"softcap": softcap, "sink": sink, "implementation": implementation}
    found = jit(functools.partial(attention.decode_attention, **options))(*args)
  np.testing.assert_allclose(found, decode_loops(*args, softcap, sink), rtol=0, atol=1e-13)


@implementations
def test_a_fixed_sink_is_a_trunk_of_one_zero(implementation):
  """Paper 44: a key and a value of 0, at first learned and then only counted."""
  case = CASES[0]
  data = draw(case, 10)
  zero = np.zeros((1, case.kv, case.d), np.float32)

  @jit
  def both(q, k, v):
    call = functools.partial(
      attention.prefix_attention, q, k, v, jnp.asarray(data.length, jnp.int32),
      num_prefix=case.p, group=case.g, implementation=implementation,
    )  # fmt: skip
    return call(trunk=(zero, zero)), call(sink=True)

  given, counted = both(*(np.asarray(a, np.float32) for a in data[:3]))
  np.testing.assert_allclose(given, counted, rtol=0, atol=1e-6)


@implementations
def test_nothing_but_the_sink_gives_half_of_a_value_whose_score_is_0(implementation):
  full = lambda x: jnp.full((1, 1, 1, 2), x, jnp.float32)
  call = functools.partial(attention.prompt_attention, sink=True, implementation=implementation)
  out = call(full(0), full(0), full(1), jnp.ones(1, jnp.int32))
  np.testing.assert_array_equal(out, full(0.5))


def test_bad_arguments_are_refused_by_name():
  data = draw(CASES[0], 0)
  with pytest.raises(ValueError, match="implementation='flash'.*xla"):
    run(CASES[0], data, "flash")
  call = functools.partial(attention.prefix_attention, *data[:3], data.length, num_prefix=5)
  with pytest.raises(ValueError, match="group=3.*segment"):
    call(group=3, segment=data.segment)
  with pytest.raises(ValueError, match="group=5.*X = 12"):
    call(group=5)
  with pytest.raises(ValueError, match="window=0"):
    call(window=0)
  with pytest.raises(ValueError, match="softcap=0"):
    call(softcap=0.0)


# ---- the paper's own code -----------------------------------------------------------------------

ORACLE = """
import sys
import numpy as np, torch
from prefix_grouper import PrefixGrouper

def attend(q, k, v, mask):  # mask [B, keys]: padding only, so causality is ours to add
  share = q.shape[1] // k.shape[1]
  k, v = (a.repeat_interleave(share, 1) for a in (k, v))
  causal = torch.ones(q.shape[2], k.shape[2], dtype=bool).tril(k.shape[2] - q.shape[2])
  score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
  score = score.masked_fill(~(mask[:, None, None] & causal), -1e300)
  return (score.softmax(-1) @ v).transpose(1, 2)

z = np.load(sys.argv[1])
grouper = PrefixGrouper(z["info"].tolist(), device="cpu")
q, k, v = (torch.tensor(z[n]).transpose(1, 2).requires_grad_() for n in "qkv")
out = grouper.forward(attend, q, k, v)
grads = torch.autograd.grad((out * torch.tensor(z["cotangent"])).sum(), (q, k, v))
np.savez(sys.argv[2], out.detach().numpy(), *(a.transpose(1, 2).numpy() for a in grads))
"""


@pytest.mark.oracle
def test_ragged_rows_equal_the_package_prefix_grouper(tmp_path, oracle_python):
  case = Case(6, 3, 4, 4, 2, 6)
  data = draw(case, 8, [6, 2, 4])
  own = np.random.default_rng(8).integers(1, case.t + 1, (N, case.g))
  real = np.concatenate([used(case, data)[:, : case.p],
                         (np.arange(case.t) < own[..., None]).reshape(N, -1)], axis=1)  # fmt: skip
  data.cotangent[~real] = 0
  # The package packs a row without gaps: [prompt; completion 1; ...; G], then padding.
  width = real.sum(1).max()
  pack = lambda a: np.stack([np.pad(x[keep], ((0, width - keep.sum()), (0, 0), (0, 0)))
                             for x, keep in zip(a, real, strict=True)])  # fmt: skip
  packed = {n: pack(getattr(data, n)) for n in ("q", "k", "v", "cotangent")}
  info = np.concatenate([data.length[:, None], own], axis=1)
  np.savez(tmp_path / "in.npz", **packed, info=info)
  command = [oracle_python, "-c", ORACLE, tmp_path / "in.npz", tmp_path / "out.npz"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  with wide():
    ours = run(case, data, "xla", np.float64)
  theirs = np.load(tmp_path / "out.npz")
  for name, a, b in zip(NAMES, ours, theirs.values(), strict=False):
    for n, keep in enumerate(real):
      np.testing.assert_allclose(a[n, keep], b[n, : keep.sum()], rtol=0, atol=1e-12, err_msg=name)
