"""What methods may read beside rewards and tokens: a need is a row of NEEDS.

A row says where the method finds it, which loops compute it, and how: `fill` before the update, on
a batch; `after` it, with a memory of its own in `TrainState.store`. Where neither stands, it comes
with the rollouts, from the plan (its SUPPLIES), the world or the environment. A new need is a row.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.core import trackers
from grpo_jax.errors import UserError
from grpo_jax.names import unknown
from grpo_jax.rollout import belief, drift
from grpo_jax.train.update import Cut
from grpo_jax.types import Batch, Fwd, Method, Metrics, Now, Rollouts, TrainState


class Sources(NamedTuple):
  """What rows may compute with: the policy that sampled, the reference, the right answers."""

  score: Callable[[Any, Batch], Fwd]
  params: Any
  reference: Any = None
  gold: belief.Gold | None = None
  in_turn: bool = False  # a large model: no more rows at a time than the batch has


@dataclasses.dataclass(frozen=True)
class Need:
  where: str  # the method finds it there
  loops: tuple[str, ...] = ()  # that compute it
  fill: Callable[[Sources, Batch], Batch] | None = None
  after: Callable[..., tuple[jax.Array, Any]] | None = None  # as rollout/drift.py: after
  store: Callable[[int, int], Any] | None = None  # (prompts, tokens) -> its first memory
  hint: str = "use another loop or other arguments of the method"


def _old(s: Sources, batch: Batch) -> Batch:
  return with_old(batch, s.score(s.params, batch))


def with_old(batch: Batch, old: Fwd) -> Batch:
  """The batch with what the policy that sampled it says of its tokens."""
  values = {} if old.value is None else {"value": old.value}
  return batch.replace(logp_old=old.logp, entropy_old=old.entropy, extra={**batch.extra, **values})


def _reference(s: Sources, batch: Batch) -> Batch:
  return batch.replace(logp_ref=s.score(s.reference, batch).logp)


def _belief(s: Sources, batch: Batch) -> Batch:
  assert s.gold is not None
  known = belief.answer_logp(s.gold, s.score, s.params, batch, s.in_turn)
  return batch.replace(extra={**batch.extra, "answer_logp": known})


_ALL = ("llm", "fused", "control", "offline", "in_context")
_TOKENS = ("llm", "fused", "offline")

NEEDS = {
  "entropy": Need("fwd.entropy", _ALL),
  "logp_old": Need("batch.logp_old", _ALL, _old),
  "entropy_old": Need("batch.entropy_old", _ALL, _old),
  "value": Need("batch.extra['value'] and fwd.value", (*_TOKENS, "control"), _old),
  "ref": Need("batch.logp_ref", _TOKENS, _reference),
  "answer_logp": Need(
    "batch.extra['answer_logp']", ("llm", "fused"), _belief, hint="it takes known answers as tokens"
  ),
  "drift": Need(
    "now.metrics['drift']", ("llm", "fused"), after=drift.after, store=trackers.no_past,
    hint="give the method a constant forgetting instead",
  ),
  "parent": Need("rollouts.parent", hint="use the plan Tree"),
  "unit_reward": Need(
    "batch.unit_reward",
    hint="use a world with turns, or reward.parts with `units` and sample.units",
  ),
  "bootstrap": Need("batch.extra['bootstrap']", ("control",), hint="use loop='control'"),
}  # fmt: skip


def check(
  method: Method, loop: str, given: Collection[str] = (), lacks: Mapping[str, str] | None = None
) -> None:
  """Raises UserError for a need that is no row, or that nothing supplies here.

  given: needs that come with the rollouts; lacks: needs that this loop cannot compute, and why.
  """
  for name in method.needs:
    if name not in NEEDS:
      raise unknown("needs of the method", name, NEEDS)
    row, why = NEEDS[name], (lacks or {}).get(name)
    if name not in given and (loop not in row.loops or why):
      raise UserError(
        f"loop {loop!r}: the method needs {name!r} ({row.where}), which is not supplied here"
        f"{f': {why}' if why else ''}; {row.hint}"
      )


def fills(method: Method, cut: Cut) -> list[Callable[[Sources, Batch], Batch]]:
  """What has to be computed before the update, each once."""
  needs = {*method.needs} | (set() if cut.on_policy else {"logp_old"})
  found = [row.fill for name, row in NEEDS.items() if name in needs and row.fill]
  return list(dict.fromkeys(found))


def fill(method: Method, cut: Cut, sources: Sources, batch: Batch) -> Batch:
  """The batch with all that the method reads of it."""
  for one in fills(method, cut):
    batch = one(sources, batch)
  return batch


def first_store(method: Method, num_prompts: int, tokens: int) -> dict[str, Any]:
  """TrainState.store before the first step. tokens: of the longest completion."""
  rows = {name: NEEDS[name].store for name in method.needs}
  return {name: make(num_prompts, tokens) for name, make in rows.items() if make}


def remember(
  method: Method, score, state: TrainState, rollouts: Rollouts, batch: Batch, metrics: Metrics
) -> tuple[Any, Any, Metrics]:
  """(method state, store, what was measured) after the update that led to `state`."""
  store, found = state.store, {}
  for name in method.needs:
    if (after := NEEDS[name].after) is not None:
      found[name], new = after(score, state.params, store[name], rollouts, batch)
      store = {**store, name: new}
  now = Now(metrics=metrics | found, step=state.step - 1)
  rollouts = rollouts.replace(step=now.step)
  memory = method.remember(state.method_state, rollouts, batch, now)
  return memory, store, {name: jnp.mean(x) for name, x in found.items()}


def remembers(method: Method) -> bool:
  """Whether there is anything to do after an update."""
  late = any(NEEDS[name].after for name in method.needs)
  return late or method.remember is not Method.remember
