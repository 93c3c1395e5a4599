"""The records that every part of grpo_jax speaks: read this file first.

Letters used in all shapes:
  N prompts in a batch, G rollouts a prompt, R rows of the batch, T tokens a row,
  U units a row (a unit is what gets one advantage: a token, segment, rank, turn or completion),
  P padded prompt tokens, C reward components, Q prompts in the data set.

A batch has two layers. `Rollouts` is small and holds one number a rollout. `Batch` is large and
holds one number a token. Two hops join them: token -> unit (`Batch.unit`, inside a row) and
unit -> rollout (`Batch.owner`, a flat index into [N, G]). So a row may be one rollout, several
rows may be one rollout (turns, summaries) and several rollouts may share a row (packing).

A policy-optimization method is a `Method`: a frozen record of pure functions of these arrays. How
it wants rollouts sampled is a `Plan`, a file of rollout/; what else it reads is a list of `needs`,
rows of train/supply.py.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Self, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Metrics = dict[str, Array]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def record(cls):
  """A frozen dataclass that is a pytree; fields marked `static()` are part of the tree's type."""
  cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  meta = [f.name for f in dataclasses.fields(cls) if f.metadata.get("static")]
  data = [f.name for f in dataclasses.fields(cls) if not f.metadata.get("static")]
  return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)


class Record:
  """What all records can do; their arrays may be numpy's before they go to a device."""

  def replace(self, **changes) -> Self:
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


def static(**kwargs) -> Any:
  return dataclasses.field(metadata={"static": True}, **kwargs)


@record
class Rollouts(Record):
  """One entry a rollout: small, replicated on every device."""

  prompt: Int[Array, " N"]  # stable id of the prompt in the data set, below Q
  reward: Float[Array, "N G"]  # total reward; finite wherever `alive`
  alive: Bool[Array, "N G"]  # False: no such rollout, or it cannot be scored
  correct: Bool[Array, "N G"]  # the verifier's verdict, apart from shaping
  truncated: Bool[Array, "N G"]  # no stop token within the budget
  length: Int[Array, "N G"]  # sampled tokens, the stop token included
  parts: Float[Array, "N G C"] | None = None  # reward components before weighting
  parent: Int[Array, "N G"] | None = None  # tree rollouts: index of the parent, -1 = the prompt
  depth: Int[Array, "N G"] | None = None
  given: Bool[Array, "N G"] | None = None  # a demonstration of the data; None: all are sampled
  step: Int[Array, ""] | None = None  # updates made before this batch; loops set it for `credit`


@record
class Batch(Record):
  """One entry a token: large, split over its rows.

  Aligned so that column t of every array speaks of `tokens[:, t]`: `logp_old[r, t]` is the
  log-probability of `tokens[r, t]` given all that precedes it. The shift by one of a causal
  model happens once, inside the model's `forward`.
  """

  tokens: Int[Array, "R T"]
  mask: Float[Array, "R T"]  # 1 where the policy sampled the token; from lengths, never from ids
  unit: Int[Array, "R T"]  # unit of the token, below U; any in-range id where mask is 0
  unit_mask: Float[Array, "R U"]  # 1 where the unit exists
  owner: Int[Array, "R U"]  # flat index into [N, G] of the unit's rollout
  logp_old: Float[Array, "R T"] | None = None  # policy that the batch was sampled with, rescored
  logp_ref: Float[Array, "R T"] | None = None  # frozen reference policy
  logp_sampler: Float[Array, "R T"] | None = None  # as the sampler computed it; NaN where given
  entropy_old: Float[Array, "R T"] | None = None  # of the policy of logp_old, in nats
  unit_reward: Float[Array, "R U"] | None = None
  # Context. Shared prompts: row r continues prompt_tokens[r // (R // N)].
  prompt_tokens: Int[Array, "N P"] | None = None  # padded on the right
  prompt_length: Int[Array, " N"] | None = None
  # Context inside the row (packing): attention stays inside a segment.
  position: Int[Array, "R T"] | None = None
  segment: Int[Array, "R T"] | None = None
  extra: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # what `needs` asked for


@record
class Credit(Record):
  """What a method decides from data alone, once a batch, before it is cut into pieces.

  `weight` carries every mask, selection, aggregation and denominator: a loss is
  sum(weight * term), so the gradient does not depend on how the batch is cut. A mini-batch takes
  its rows; `weight` and `weights` are then times the number of mini-batches, so that their
  denominators count a mini-batch's share of the whole.
  """

  adv: Float[Array, "R U"]
  weight: Float[Array, "R T"]
  adv_token: Float[Array, "R T"] | None = None  # one a token, where given instead of adv (GAE)
  weights: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # [R, ...]: of other terms
  extra: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # [R, ...]: value targets


@record
class Fwd(Record):
  """What a model must produce for a batch: the only thing a loss knows of it."""

  logp: Float[Array, "R T"]  # log-probability of batch.tokens at the sampling temperature
  entropy: Float[Array, "R T"] | None = None  # of the full next-token distribution, in nats
  value: Float[Array, "R T"] | None = None  # value head, before the token is taken
  aux: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # scalars, e.g. MoE balance


@record
class Now(Record):
  """What `Method.remember` may know of the update that was just made."""

  metrics: Metrics
  step: Int[Array, ""]


@record
class TrainState(Record):
  """All that a run carries from step to step on the devices; checkpointed as a whole."""

  params: Any
  opt_state: Any
  method_state: Any
  step: Int[Array, ""]
  store: Any = ()  # what needs keep of rollouts, by need (train/supply.py)


# ---- plans: frozen data that rollout/ interprets -------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
  """How to sample. A plan is a class here or in a paper's file, and one file of rollout/ of its
  name in lower case, which plays it: see rollout/plans.py."""

  def rollouts(self, group: int) -> int:
    """G: rollouts a prompt, where the config asks for `group`."""
    return group

  def rows(self, group: int) -> int:
    """Rows of the batch a prompt."""
    return self.rollouts(group)

  def prompts(self, count: int) -> int:
    """How many problems are drawn for a batch of `count` prompts."""
    return count


@dataclasses.dataclass(frozen=True)
class Flat(Plan):
  """G independent completions a prompt.

  `resample` > 0: dynamic sampling. Groups whose rewards are all equal are replaced by those of
  fresh prompts, for at most `resample` more rounds of sampling a step; what is then still missing
  is padded with `alive` = False.
  `demonstrate`: after the G sampled completions of a prompt comes one that is given, the last
  column of [N, G + 1], marked in `Rollouts.given`. Its `mask` is 1; where there is none it is not
  `alive`.
  """

  resample: int = 0
  demonstrate: bool = False

  def rollouts(self, group: int) -> int:
    return group + self.demonstrate

  def prompts(self, count: int) -> int:
    return count * (1 + self.resample)


@dataclasses.dataclass(frozen=True)
class Tree(Plan):
  """Rollouts that branch: a node is a rollout, its own tokens only, `nodes` of them a prompt.

  The prompt has branching[0] children, an unfinished node of depth d branching[d + 1]. A node is
  cut after `segment_tokens`; those of the last depth run to their end. `Rollouts.parent` is the
  index of the parent in its group, -1 for the prompt; `depth` counts from 0. Nodes that were never
  sampled, because the parent is finished, are not `alive`; nor is an unfinished one all of whose
  children are not. The reward of an unfinished inner node is not read.
  """

  branching: tuple[int, ...] = (6, 6, 6)
  segment_tokens: int = 30

  @property
  def nodes(self) -> int:
    """G: all nodes below a prompt."""
    width, total = 1, 0
    for children in self.branching:
      width *= children
      total += width
    return total

  def rollouts(self, group: int) -> int:
    del group
    return self.nodes

  def rows(self, group: int) -> int:
    """A row a path to the deepest level."""
    del group
    return math.prod(self.branching)


@dataclasses.dataclass(frozen=True)
class Chain(Plan):
  """G completions a prompt, cut into segments whose starts are valued by sampling on from there.

  A segment begins at the first token of probability below `cut` and at every `interval`-th such
  token after it (`core.segments.cut_points`); its value, in `Batch.unit_reward`, is the mean reward
  of `samples` fresh completions of the prefix before it, NaN where none was estimated.
  """

  interval: int = 5
  samples: int = 9
  cut: float = 0.9


@dataclasses.dataclass(frozen=True)
class Fixed(Plan):
  """No sampling: `completions` of a prompt come from the data set: 1 a demonstration, 2 a pair of
  which the first is the chosen one."""

  completions: int = 1

  def rollouts(self, group: int) -> int:
    del group
    return self.completions


# ---- the method ----------------------------------------------------------------------------------


def _no_state(num_prompts: int):
  del num_prompts
  return ()


def _keep_state(state, rollouts, batch, now):
  del rollouts, batch, now
  return state


@dataclasses.dataclass(frozen=True)
class Method:
  """A policy-optimization method: pure functions of arrays, made by a paper's `make(...)`.

  credit(state, rollouts, batch) -> Credit        data only; never sees the current parameters
  loss(fwd, batch, credit) -> (scalar, metrics)   a sum over rows: additive over micro-batches;
                                                  its metrics are sums too (already weighted),
                                                  but those named "max_..." combine by max
  init(num_prompts) -> state                      fixed-shape pytree, indexed by stable prompt id
  weigh(state) -> f32[Q]                          sampling weights of the prompts; None = uniform
  remember(state, rollouts, batch, now) -> state  after the update
  settle(params, before) -> params                after every optimizer step, from those before it:
                                                  slow copies, projections; None = nothing
  plan                                            how to sample: frozen data for rollout/
  needs                                           what else the method reads, by the names in
                                                  train/supply.py, which says where it is put
  reduces_to                                      (name, kwargs, own kwargs): the method it equals
                                                  under those settings; checked by the shared suite
  whole_groups                                    True if the rollouts of a prompt must share a
                                                  micro-batch (pair losses)
  fresh_optimizer                                 True: moments and their count start anew with each
                                                  batch (schedules go on)
  policy_gradient                                 True if d loss / d logp is
                                                  -weight * stable * adv * ratio (unified estimator)
  """

  credit: Callable[[Any, Rollouts, Batch], Credit]
  loss: Callable[[Fwd, Batch, Credit], tuple[Array, Metrics]]
  init: Callable[[int], Any] = _no_state
  weigh: Callable[[Any], Array] | None = None
  remember: Callable[[Any, Rollouts, Batch, Now], Any] = _keep_state
  settle: Callable[[Any, Any], Any] | None = None
  plan: Plan = Flat()
  needs: tuple[str, ...] = ()
  reduces_to: tuple[str, dict, dict] | None = None
  whole_groups: bool = False
  fresh_optimizer: bool = False
  policy_gradient: bool = True


def rows_of(rollouts: Rollouts, tokens: Array, mask: Array, **fields) -> Batch:
  """The plain layout: row r is rollout (r // G, r % G), and the completion is its one unit."""
  rows = rollouts.reward.size
  return Batch(
    tokens=tokens,
    mask=mask.astype(jnp.float32),
    unit=jnp.zeros(tokens.shape, jnp.int32),
    unit_mask=(jnp.sum(mask, axis=1, keepdims=True) > 0).astype(jnp.float32),
    owner=jnp.arange(rows, dtype=jnp.int32)[:, None],
    **fields,
  )
