"""The order in which training problems are met: endless, shuffled, resumable at any position."""

import zlib
from collections.abc import Sequence

import numpy as np

from grpo_jax.data.problem import Problem
from grpo_jax.errors import UserError
from grpo_jax.names import one_of


class _Epochs:
  """Position -> item of `items`, in epochs shuffled by (seed, epoch)."""

  def __init__(self, items: Sequence[int], seed: int):
    self.items, self.seed = items, seed
    self._epoch, self._perm = -1, np.zeros(0, np.int64)

  def __getitem__(self, position: int) -> int:
    epoch, offset = divmod(position, len(self.items))
    if epoch != self._epoch:
      # Sorted uniforms, not Generator.permutation: that may change with the release of numpy.
      random = np.random.Generator(np.random.Philox(key=[self.seed % 2**64, epoch]))
      self._epoch, self._perm = epoch, np.argsort(random.random(len(self.items)), kind="stable")
    return self.items[self._perm[offset]]


class _Mix:
  """Position -> item, the part furthest behind its share being next (first one among equals)."""

  def __init__(self, parts: list, weights: list[float]):
    self.parts, self.weights = parts, np.asarray(weights, np.float64) / sum(weights)
    self._turns: list[int] = []  # part at each position, extended as asked for
    self._counts = np.zeros(len(parts), np.int64)
    self._ranks: list[int] = []  # position inside the part

  def __getitem__(self, position: int) -> int:
    while len(self._turns) <= position:
      behind = self.weights * (len(self._turns) + 1) - self._counts
      k = int(np.argmax(behind))
      self._turns.append(k)
      self._ranks.append(int(self._counts[k]))
      self._counts[k] += 1
    return self.parts[self._turns[position]][self._ranks[position]]


def _grain_epochs(items: Sequence[int], seed: int):
  import grain  # about a second: only where data is read through it

  return grain.MapDataset.source(items).shuffle(seed=seed % 2**32).repeat()


ORDERS = {"numpy": _Epochs, "grain": _grain_epochs}


def _order(problems: Sequence[Problem], seed: int, epochs):
  """Position -> index. A function of the position alone, so only the position has to be saved."""
  groups: dict[str, list[int]] = {}
  share: dict[str, float] = {}
  for i, p in enumerate(problems):
    label = str(p.meta.get("source"))
    groups.setdefault(label, []).append(i)
    share[label] = float(p.meta.get("share", 0.0))
  if len(groups) == 1 or not all(share.values()):
    return epochs(list(range(len(problems))), seed)
  parts = [epochs(index, seed + (k << 20)) for k, index in enumerate(groups.values())]
  return _Mix(parts, [share[label] for label in groups])


class PromptStream:
  """Training problems without end.

  `next(n)` goes through shuffled epochs. Where problems carry meta["share"], every label has
  epochs of its own and gets its share of every batch, however few problems it has; else all
  problems are one epoch. A batch has no problem twice unless it must.

  `next(n, weights)` samples instead by weights f32[Q] (a curriculum), n distinct problems where at
  least n have weight above 0, by Efraimidis and Spirakis 2006 keys u^(1/w); a function of (seed,
  number of the draw, weights). The two ways do not disturb each other.

  `order`: what shuffles, "numpy" or "grain" (DataSet.order says which fits the source).
  """

  def __init__(
    self,
    problems: Sequence[Problem],
    seed: int,
    weights: np.ndarray | None = None,
    order: str = "numpy",
  ):
    one_of("data.order", order, ORDERS)
    if not len(problems):
      raise UserError("data: no training problems; raise data.size or lower data.heldout")
    self.problems = problems
    self.seed = int(seed)
    self.weights = weights
    self.order = order
    self._position = 0
    self._draws = 0
    self._late: list[int] = []
    self._indices = None

  def next(self, n: int, weights: np.ndarray | None = None) -> list[Problem]:
    """The next `n` problems. All weights 0: as without weights."""
    weights = self.weights if weights is None else weights
    if weights is not None:
      weights = self._checked(weights)
      if weights.any():
        return [self.problems[i] for i in self._weighted(n, weights)]
    if self._indices is None:
      self._indices = _order(self.problems, self.seed, ORDERS[self.order])
    return [self.problems[i] for i in self._distinct(n, self._indices)]

  def _distinct(self, n: int, indices) -> list[int]:
    """The next n; one met twice (an epoch ends inside the batch) waits for the batch after.

    Two groups of one prompt in a batch would sample the same completions.
    """
    queue, self._late = self._late, []
    chosen: dict[int, None] = {}
    while len(chosen) < n and len(self._late) < n:
      if queue:
        i = queue.pop(0)
      else:
        i = int(indices[self._position])
        self._position += 1
      if i in chosen:
        self._late.append(i)
      else:
        chosen[i] = None
    missing = n - len(chosen)  # above 0 where n distinct ones cannot be had
    repeated, self._late = self._late[:missing], self._late[missing:] + queue
    return list(chosen) + repeated

  def _checked(self, weights) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(self.problems),):
      raise ValueError(f"weights: shape {weights.shape}, expected ({len(self.problems)},)")
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
      raise ValueError("weights: must be finite and not negative")
    return weights

  def _weighted(self, n: int, weights: np.ndarray) -> list[int]:
    random = np.random.Generator(np.random.Philox(key=[self.seed % 2**64, self._draws]))
    self._draws += 1
    some = np.flatnonzero(weights)
    chosen: list[int] = []
    while len(chosen) < n:  # more than once only where n exceeds the problems with weight
      key = np.log1p(-random.random(some.size)) / weights[some]  # log u^(1/w), u in (0, 1]
      chosen += some[np.argsort(-key, kind="stable")][: n - len(chosen)].tolist()
    return chosen

  def state(self) -> dict:
    """JSON-able; with the same problems and seed, `restore` goes on bitwise equal."""
    return {
      "position": self._position,
      "late": list(self._late),
      "draws": self._draws,
      "seed": self.seed,
      "order": self.order,
      "problems": self._fingerprint(),
    }

  def restore(self, state: dict) -> None:
    for key, mine in (
      ("seed", self.seed),
      ("order", self.order),
      ("problems", self._fingerprint()),
    ):
      if state[key] != mine:
        raise UserError(
          f"data: the checkpoint was made with other data ({key} {state[key]}, now {mine}); "
          "restore the data config or start in a new workdir"
        )
    self._position, self._draws = int(state["position"]), int(state["draws"])
    self._late = [int(i) for i in state["late"]]

  def _fingerprint(self) -> str:
    code = 0
    for p in self.problems:
      code = zlib.crc32(f"{p.id}\0{p.prompt}\0".encode(), code)
    return f"{len(self.problems)}-{code:08x}"
