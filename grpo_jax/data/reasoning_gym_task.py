"""Problems of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), one task or a mixture.

A component is {"name", "params", "weight", "label"}. Small tasks repeat themselves (chain_sum of
two 1-digit terms has 200 questions), so questions are deduplicated and split by a hash of their
text: what is held out does not depend on the order of generation, and is never trained on.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from grpo_jax.data.problem import Problem, text_hash
from grpo_jax.errors import UserError
from grpo_jax.names import check_keys
from grpo_jax.reasoning_gym import gym_dataset

# A task is taken to be exhausted after this many draws in a row without a new question.
_PATIENCE = 2000


@dataclass(frozen=True)
class Component:
  name: str
  params: dict = field(default_factory=dict)
  weight: float = 1.0
  label: str | None = None

  @staticmethod
  def of(i: int, spec: Any) -> "Component":
    where = f"data.mix[{i}]"
    if isinstance(spec, str):
      return Component(spec)
    if not isinstance(spec, dict):
      raise UserError(f"{where}: expected a name or {{'name': ..., 'params': ...}}, got {spec!r}")
    check_keys(where, spec, Component.__dataclass_fields__)
    if "name" not in spec:
      raise UserError(f"{where}.name: missing; give the name of a reasoning-gym data set")
    made = Component(**spec)
    if not made.weight > 0:
      raise UserError(f"{where}.weight: must be above 0, got {made.weight}")
    if {"seed", "size"} & set(made.params):
      raise UserError(f"{where}.params: seed and size are set by data.seed and data.size")
    return made


def parse_mix(mix: list) -> list[Component]:
  if not mix:
    raise UserError("data.mix: empty; name at least one reasoning-gym data set")
  parts = [Component.of(i, spec) for i, spec in enumerate(mix)]
  labels = [c.label or c.name for c in parts]
  for label in labels:
    if labels.count(label) > 1:
      raise UserError(f"data.mix: label {label!r} is used twice; give each component its own label")
  return [
    Component(c.name, dict(c.params), c.weight, label)
    for c, label in zip(parts, labels, strict=True)
  ]


def shares(total: int, weights: list[float]) -> list[int]:
  """`total` cut by weight, largest remainders first, so that the parts sum to it."""
  exact = [total * w / sum(weights) for w in weights]
  parts = [int(x) for x in exact]
  order = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
  for i in order[: total - sum(parts)]:
    parts[i] += 1
  return parts


def _distinct(component: Component, seed: int, want: int, taken: set[str]) -> list[Problem]:
  """Up to `want` problems with questions not in `taken`, to which they are added."""
  draws = 50 * want + _PATIENCE
  key = json.dumps([component.name, component.params, seed], sort_keys=True, default=str)
  params = component.params | {"seed": text_hash(key) % 2**31, "size": draws}
  dataset = gym_dataset(component.name, params)
  found, idle = [], 0
  for i in range(min(draws, len(dataset))):
    if len(found) == want or idle >= _PATIENCE:
      break
    entry = dataset[i]
    question = entry["question"].strip()
    idle += 1
    if question in taken:
      continue
    taken.add(question)
    idle = 0
    answer = entry["answer"]
    meta = {
      "source": component.label,
      "share": component.weight,
      "task": {"name": component.name, "params": component.params},
      "entry": entry,
    }
    found.append(Problem(-1, question, question, None if answer is None else str(answer), meta))
  return found


def make_problems(
  mix: list, size: int, heldout: int, seed: int, spare: int = 0
) -> tuple[list[Problem], list[Problem]]:
  """(train, heldout) over all components, `size` and `heldout` cut by weight.

  No question text is in both, nor twice in one. `train` may be smaller than `size` where a task
  has too few questions. UserError where a component cannot give its share of held-out problems
  and one training problem besides its part of `spare`.
  """
  components = parse_mix(mix)
  weights = [c.weight for c in components]
  train, held, taken = [], [], set()
  least = 1 + -(-spare // len(components))
  sizes, helds = shares(size + spare, weights), shares(heldout, weights)
  for component, n, h in zip(components, sizes, helds, strict=True):
    pool = _distinct(component, seed, n + h, taken)
    if len(pool) < h + least:
      raise UserError(
        f"data.heldout: {component.label} has {len(pool)} distinct questions, too few for {h} "
        f"held out and {least} to train on; lower data.heldout or widen its params"
      )
    pool.sort(key=lambda p: text_hash(p.question, "heldout"))
    held += [((j + 0.5) / h, p) for j, p in enumerate(pool[:h])]
    train += pool[h:]
  held.sort(key=lambda at: at[0])  # stable: any prefix of the held-out problems is in proportion
  return train, [p for _, p in held]
