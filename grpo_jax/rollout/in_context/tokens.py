"""A context of transitions and a query state as the tokens that an in-context learner reads.

Letters: H transitions, S numbers a state, A actions, L tokens, W numbers a token.

  transition  [query, (s, a, s', r) x H], L = 1 + H, W = 2 S + A + 1: DPT (arXiv:2306.14892, its
              code). After n transitions the output at token n answers.
  split       [query, s, a, r, s, a, r, ...], L = 1 + 3 H, W = max(S, A, 1): T2MIR-DPT
              (arXiv:2506.05426, from its code). After n transitions the output at the n-th state
              token answers, as there: it does not see the action and reward of the n-th. The
              tokens of a step share a position.
  history     [s, a, r, s, a, r, ...], L = 3 H, W as in split: Algorithm Distillation. Transitions
              follow each other; the output at a state token answers with the action there.
  episodes    the same of whole episodes in ascending order of their return, and a position is the
              step inside the episode: T2MIR-AD on continuous control (from its code).

A discrete action is one-hot, a continuous one stands as it is. Tokens of a kind that needs fewer
than W numbers end in zeros. States are standardized where `norm` is given.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpo_jax.core.transitions import Transitions
from grpo_jax.envs.contextual.family import Family
from grpo_jax.errors import UserError

KINDS = ("transition", "split", "history", "episodes")
_TINY = 1e-6  # T2MIR: of the standard deviation


@dataclasses.dataclass(frozen=True)
class Layout:
  """The tokens of a family's contexts of `steps` transitions. Raises UserError for another kind."""

  family: Family
  steps: int
  kind: str = "transition"
  norm: tuple[np.ndarray, np.ndarray] | None = None  # f32[S] each: what states less this, over that

  def __post_init__(self):
    if self.kind not in KINDS:
      raise UserError(f"tokens={self.kind!r}: use one of {', '.join(KINDS)}")
    if self.steps < 1:
      raise UserError(f"data.steps={self.steps}: must be at least 1 transition")

  @property
  def history(self) -> bool:
    """Whether the answer after n transitions is the action of the next one."""
    return self.kind in ("history", "episodes")

  @property
  def lead(self) -> int:
    """Tokens before those of the first transition."""
    return 0 if self.history else 1

  @property
  def each(self) -> int:
    """Tokens a transition."""
    return 1 if self.kind == "transition" else 3

  @property
  def length(self) -> int:
    return self.lead + self.each * self.steps

  @property
  def modalities(self) -> tuple[int, ...]:
    """Widths of the kinds of token; () where there is one kind."""
    f = self.family
    return () if self.kind == "transition" else (f.observation, f.actions, 1)

  @property
  def width(self) -> int:
    f = self.family
    return max(self.modalities) if self.modalities else 2 * f.observation + f.actions + 1

  @property
  def reads(self) -> np.ndarray:
    """i32[H + 1], or [H] of a history: the token whose output answers after n transitions."""
    n = np.arange(self.steps + self.lead, dtype=np.int32)
    if self.kind == "split":
      return np.maximum(3 * n - 2, 0).astype(np.int32)
    return n * self.each

  @property
  def position(self) -> np.ndarray:
    """i32[L]: the step a token belongs to, counted from 0 at the first token (of an episode)."""
    own = np.repeat(np.arange(self.steps, dtype=np.int32), self.each) + self.lead
    if self.kind == "episodes":
      own = own % self.family.horizon
    return np.concatenate([np.zeros(self.lead, np.int32), own]).astype(np.int32)

  @property
  def part(self) -> np.ndarray:
    """i32[L]: the kind of a token; 0 a state (or a whole transition), 1 an action, 2 a reward."""
    place = np.arange(self.length, dtype=np.int32)
    return np.maximum(place - self.lead, 0) % self.each

  def encode(self, query: Float[Array, " S"], data: Transitions) -> Float[Array, "l W"]:
    """The tokens of one context of any number of transitions; `query` is not read of a history.
    vmap for many."""
    rows = self.tokens(data)
    first, query = jnp.zeros((self.lead, self.width)), self.standard(query)
    return jnp.concatenate([first.at[:, : query.shape[0]].set(query[None]), rows])

  def tokens(self, data: Transitions) -> Float[Array, "l W"]:
    """The tokens of transitions alone, of any number of them."""
    action = data.action
    if not self.family.continuous:
      action = jax.nn.one_hot(action, self.family.actions)
    reward = data.reward[:, None]
    if self.kind == "transition":
      after = self.standard(data.next_state)
      return jnp.concatenate([self.standard(data.state), action, after, reward], axis=1)
    fill = lambda x: jnp.pad(x, ((0, 0), (0, self.width - x.shape[1])))
    rows = jnp.stack([fill(x) for x in (self.standard(data.state), action, reward)], axis=1)
    return rows.reshape(-1, self.width)

  def standard(self, state: Float[Array, "*H S"]) -> Float[Array, "*H S"]:
    if self.norm is None:
      return state
    mean, spread = (jnp.broadcast_to(jnp.asarray(x), state.shape) for x in self.norm)
    return (state - mean) / spread

  def normed(self, states: np.ndarray) -> "Layout":
    """This layout with the mean and the standard deviation + 1e-6 of these states [..., S]."""
    rows = np.asarray(states, np.float64).reshape(-1, self.family.observation)
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + _TINY
    return dataclasses.replace(self, norm=(mean.astype(np.float32), spread.astype(np.float32)))


def empty(family: Family, steps: int) -> Transitions:
  """`steps` transitions of zeros: room for what is to come."""
  s, a = family.observation, family.actions
  action = jnp.zeros((steps, a)) if family.continuous else jnp.zeros(steps, jnp.int32)
  return Transitions(
    state=jnp.zeros((steps, s)),
    action=action,
    next_state=jnp.zeros((steps, s)),
    reward=jnp.zeros(steps),
  )
