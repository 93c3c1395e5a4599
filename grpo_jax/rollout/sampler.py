"""Sampling G completions a prompt in one compiled loop over a shared prompt cache.

A prompt is prefilled once. S slots a prompt decode in step; when a slot's completion ends, the
slot takes the prompt's next unsampled completion (slot refill), and the loop ends with the last one
(early exit). Column i of the slots' own cache is written by step i modulo T, whatever completion a
slot is at, so that the write is one contiguous block; a slot sees the columns younger than its
completion.

The key of a token is fold_in(prompt key, sample, position), so a completion does not depend on the
batch it is in, on the number of slots, or on devices, beyond rounding of the logits.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.models import decoder
from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout import choose
from pallas_kernels import prefix_attention as attention
from pallas_kernels import token_logprob

_SAMPLED = choose.Choice()


class Samples(NamedTuple):
  """Entries at and beyond `length` are 0."""

  tokens: Int[Array, "N G T"]
  logp: Float[Array, "N G T"]  # of the sampled tokens, at the sampling temperature
  length: Int[Array, "N G"]  # the stop token included
  stopped: Bool[Array, "N G"]  # False: cut off by the budget
  steps: Int[Array, ""]  # decode steps the loop took


class _Slots(NamedTuple):
  """What the decode loop carries."""

  step: Array  # i32[]
  token: Array  # i32[N, S] the token to feed next
  sample: Array  # i32[N, S] which completion the slot is at; >= G: none
  fed: Array  # i32[N, S] tokens of it sampled so far
  taken: Array  # i32[N] completions handed out
  k: Any  # f32[L, N, K, S, T, d], or a tuple of L without the first axis
  v: Any
  out: Samples


def decode(config, params, prefix, slots, implementation=None):
  """Feeds `slots.token`; returns hidden [N, S, D] and the caches with its column.

  Of `slots` (a NamedTuple) it reads step, token, fed, k and v, and replaces k and v.
  """
  columns = slots.k[0].shape[-2]
  column = slots.step % columns
  age = (slots.step - jnp.arange(columns)) % columns
  visible = age[None, None] < slots.fed[..., None]
  position = prefix.length[:, None] + slots.fed - 1

  def layer(x, weights, k_prefix, v_prefix, keep):
    def attend(q, k, v):
      (k, v), caches = keep(*(a.transpose(0, 2, 1, 3)[:, :, :, None] for a in (k, v)))
      mixed = attention.decode_attention(
        q, k_prefix, v_prefix, prefix.length, k, v, visible, implementation=implementation
      )
      return mixed, caches

    return decoder.block_apply(config, weights, x, position, attend)

  def unrolled(x):
    caches = []
    for weights, k_prefix, v_prefix, *own in zip(
      params["layers"], prefix.k, prefix.v, slots.k, slots.v, strict=True
    ):

      def keep(k, v, own=own):
        put = jax.lax.dynamic_update_slice
        new = tuple(put(a, b, (0, 0, 0, column, 0)) for a, b in zip(own, (k, v), strict=True))
        return new, new

      x, kept = layer(x, weights, k_prefix, v_prefix, keep)
      caches.append(kept)
    return x, *zip(*caches, strict=True)

  def scanned(x):
    def step(carry, inputs):
      x, *stacks = carry
      index, weights, k_prefix, v_prefix = inputs

      def keep(k, v):
        put, at = jax.lax.dynamic_update_slice, (index, 0, 0, 0, column, 0)
        new = [put(a, b[None], at) for a, b in zip(stacks, (k, v), strict=True)]
        return [jax.lax.dynamic_index_in_dim(a, index, keepdims=False) for a in new], new

      x, stacks = layer(x, weights, k_prefix, v_prefix, keep)
      return (x, *stacks), None

    inputs = (jnp.arange(config.num_layers), params["layers"], prefix.k, prefix.v)
    return jax.lax.scan(step, (x, slots.k, slots.v), inputs)[0]

  x = decoder.embed(params, slots.token)
  x, k, v = unrolled(x) if isinstance(slots.k, tuple) else scanned(x)
  return decoder.rms_norm(x, params["norm"], config.norm_eps), slots._replace(k=k, v=v)


def _apart(tree, layers: int) -> list:
  """Stacked arrays as one tree a layer, split once before the loop."""
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(layers)]


def _advance(slots, logits, draws, stop_ids, choice):
  """Samples one token a live slot from logits [N, S, V], records it, refills ended slots."""
  n, s, v = logits.shape
  group, budget = slots.out.tokens.shape[1:]
  live = slots.sample < group
  row = jnp.arange(n)[:, None]
  draw = draws[row, slots.sample, slots.fed]  # of no use where a slot is at none
  token, logp = choose_with_logp(logits.reshape(n * s, v), draw.reshape(n * s), choice)
  token, logp = token.reshape(n, s), logp.reshape(n, s)

  sample = jnp.where(live, slots.sample, group)  # out of range: the write is dropped
  stop = jnp.any(token[..., None] == stop_ids[None, None], axis=-1)
  done = live & (stop | (slots.fed + 1 >= budget))
  out = slots.out._replace(
    tokens=slots.out.tokens.at[row, sample, slots.fed].set(token, mode="drop"),
    logp=slots.out.logp.at[row, sample, slots.fed].set(logp, mode="drop"),
    length=slots.out.length.at[row, sample].add(1, mode="drop"),
    stopped=slots.out.stopped.at[row, sample].set(stop, mode="drop"),
  )
  rank = jnp.cumsum(done, axis=1) - 1
  return slots._replace(
    token=token,
    sample=jnp.where(done, slots.taken[:, None] + rank, slots.sample),
    fed=jnp.where(done, 0, slots.fed + 1),
    taken=slots.taken + jnp.sum(done, axis=1),
    out=out,
  )


def choose_with_logp(logits: Float[Array, "X V"], draw: Float[Array, " X"], choice):
  """Tokens and their log-probabilities at the sampling temperature, which the trainer's equal."""
  scaled = logits / (choice.temperature if choice.temperature > 0 else 1.0)
  token = choose.choose(scaled, draw, choice)
  return token, token_logprob.from_logits(scaled, token).logp


def uniforms(keys, samples: Int[Array, " S"], positions: Int[Array, " T"]) -> Float[Array, "N S T"]:
  """The numbers in [0, 1) that decide tokens. Drawn before the loop over tokens: a generator inside
  it costs a small model more than its layers do."""

  def one(key, sample, position):
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, sample), position))

  along = jax.vmap(one, in_axes=(None, None, 0))
  each = jax.vmap(jax.vmap(along, in_axes=(None, 0, None)), in_axes=(0, None, None))
  return each(keys, samples, positions)


def project(params, x: Array) -> Array:
  """Logits in float32."""
  head = decoder.output_matrix(params)
  return jnp.einsum("...d,vd->...v", x, head, preferred_element_type=jnp.float32)


def open_cache(
  config, params, prompt, length, slots, columns, *, trunk=None, unroll=None, implementation=None
):
  """Prefills the prompts: (params, prefix cache, empty own cache, last hidden state [N, D]), all as
  `decode` wants them. For `unroll` see `sample`."""
  n, layers = prompt.shape[0], config.num_layers
  last, prefix = decoder.prefill(config, params, prompt, length, trunk, implementation)
  prefix = prefix._replace(k=prefix.k.transpose(0, 1, 3, 2, 4), v=prefix.v.transpose(0, 1, 3, 2, 4))
  cache = jnp.zeros((layers, n, config.num_kv_heads, slots, columns, config.head_dim), last.dtype)
  if jax.default_backend() == "cpu" if unroll is None else unroll:
    params = params | {"layers": _apart(params["layers"], layers)}
    k, v = (tuple(_apart(x, layers)) for x in (prefix.k, prefix.v))
    prefix = prefix._replace(k=k, v=v)
    cache = tuple(_apart(cache, layers))
  return params, prefix, cache, last


@functools.partial(
  jax.jit,
  static_argnames=(
    "config", "group", "budget", "slots", "choice", "stop_ids", "unroll", "implementation"
  ),
)  # fmt: skip
def sample(
  config: ModelConfig,
  params: Any,
  prompt: Int[Array, "N P"],
  length: Int[Array, " N"],
  keys: Array,
  *,
  group: int,
  budget: int,
  stop_ids: tuple[int, ...],
  choice: choose.Choice = _SAMPLED,
  slots: int | None = None,
  trunk: Int[Array, " C"] | None = None,
  unroll: bool | None = None,
  implementation: str | None = None,
) -> Samples:
  """`group` completions of at most `budget` tokens for each right-padded prompt.

  keys: one typed key a prompt [N]. A completion ends with the first of `stop_ids`, which is part of
  it (and is trained), or at the budget. `slots` (default: group) bounds how many completions of a
  prompt decode at once, and with it the cache. `trunk`: a text before all prompts, prefilled once.
  `unroll`: one copy of the layer's program a layer instead of a scan. A scan copies every layer's
  weights at every token on the CPU, hence the default there; elsewhere it compiles faster.
  `implementation` of the attention, by the names in pallas_kernels/dispatch.py.
  """
  n, s = prompt.shape[0], min(slots or group, group)
  params, prefix, cache, last = open_cache(
    config, params, prompt, length, s, budget,
    trunk=trunk, unroll=unroll, implementation=implementation,
  )  # fmt: skip
  stops = jnp.asarray(stop_ids, jnp.int32)
  first = project(params, last)  # the same for every completion of a prompt
  state = _Slots(
    step=jnp.int32(0),
    token=jnp.zeros((n, s), jnp.int32),
    sample=jnp.broadcast_to(jnp.arange(s), (n, s)),
    fed=jnp.zeros((n, s), jnp.int32),
    taken=jnp.full(n, s, jnp.int32),
    k=cache,
    v=cache,
    out=Samples(
      tokens=jnp.zeros((n, group, budget), jnp.int32),
      logp=jnp.zeros((n, group, budget), jnp.float32),
      length=jnp.zeros((n, group), jnp.int32),
      stopped=jnp.zeros((n, group), bool),
      steps=jnp.int32(0),
    ),
  )
  draws = uniforms(keys, jnp.arange(group), jnp.arange(budget))
  state = _advance(
    state, jnp.broadcast_to(first[:, None], (n, s, first.shape[-1])), draws, stops, choice
  )

  def more(state):
    return jnp.any(state.sample < group)

  def step(state):
    x, state = decode(config, params, prefix, state, implementation)
    fresh = (state.fed == 0)[..., None]
    logits = project(params, x)
    logits = jnp.where(fresh, first[:, None], logits) if s < group else logits
    state = _advance(state, logits, draws, stops, choice)
    return state._replace(step=state.step + 1)

  state = jax.lax.while_loop(more, step, state)
  return state.out._replace(steps=state.step)
