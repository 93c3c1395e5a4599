"""How far the policy has moved on the previous completion of each prompt: what methods that need
"drift" read from `now.metrics` ("Single-stream Policy Optimization", 2025, card 68).

  D(x) = mean over the tokens of y' of |logp of y' when it was stored - logp of y' now|

y' is the first completion of x at its last visit, stored with the log-probabilities of the policy
after that visit's update; now is after this step's update. The first visit has D = 0. It costs a
pass over two completions a prompt, and the memory of one completion for every prompt.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.core import trackers
from grpo_jax.rollout import prefixes
from grpo_jax.types import Batch, Method, Metrics, Now, Rollouts, TrainState


def with_past(method: Method, tokens: int) -> Method:
  """`method` with the completions in its state, (own state, Past); it remembers nothing inside the
  update, since D is of the parameters after it: `remember` is to be called instead."""

  def keep(state, rollouts, batch, now):
    del rollouts, batch, now
    return state

  weigh = method.weigh
  return dataclasses.replace(
    method,
    init=lambda num_prompts: (method.init(num_prompts), trackers.no_past(num_prompts, tokens)),
    weigh=None if weigh is None else lambda state: weigh(state[0]),
    credit=lambda state, rollouts, batch: method.credit(state[0], rollouts, batch),
    remember=keep,
  )


def remember(
  method: Method,
  forward,
  state: TrainState,
  rollouts: Rollouts,
  batch: Batch,
  metrics: Metrics,
) -> tuple[TrainState, Float[Array, " N"]]:
  """(state with the memory of `method` and its completions brought up to date, D).

  `state` is that after the update, of a method made by `with_past`; one row a rollout.
  """
  own, past = state.method_state
  prompt = rollouts.prompt
  n, t = prompt.shape[0], batch.tokens.shape[1]
  latest = lambda x: x.reshape(n, -1, t)[:, 0]
  tokens, mask = latest(batch.tokens), latest(batch.mask)
  now = _score(
    forward,
    state.params,
    jnp.stack([past.tokens[prompt], tokens], axis=1),
    jnp.stack([past.mask[prompt], mask], axis=1),
    batch,
  )
  drift = trackers.drift(past.logp[prompt], now[:, 0], past.mask[prompt])
  seen = Now(metrics=metrics | {"drift": drift}, step=state.step - 1)
  own = method.remember(own, rollouts, batch, seen)
  past = trackers.store(past, prompt, tokens, mask, now[:, 1], rollouts.alive[:, 0])
  return state.replace(method_state=(own, past)), drift


def _score(forward, params: Any, tokens, mask, batch: Batch) -> Float[Array, "N 2 T"]:
  n, two, t = tokens.shape
  rows = prefixes.rows(tokens.reshape(n * two, t), mask.reshape(n * two, t), batch)
  return forward(params, rows).logp.reshape(n, two, t)
