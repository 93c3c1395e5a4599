"""What in-context reinforcement learning reads: single steps of one control problem."""

from collections.abc import Mapping

from jaxtyping import Array, Float, Int

from grpo_jax.types import Record, record


@record
class Transitions(Record):
  """H steps (s, a, s', r). Whether they follow each other is said by whoever made them."""

  state: Float[Array, "H S"]
  action: Int[Array, " H"] | Float[Array, "H A"]  # an index, or a vector where continuous
  next_state: Float[Array, "H S"]
  reward: Float[Array, " H"]


@record
class Histories(Record):
  """What learners lived through, the oldest first: N tasks, K learners on each, T steps.

  tasks: the leaves of the tasks by name, [N, ...] each, in one order for all.
  """

  tasks: Mapping[str, Array]
  steps: Transitions  # [N, K, T, ...]
