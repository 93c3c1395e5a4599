"""Held-out accuracy: greedy, and by samples pass@k and maj@k."""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from grpo_jax.rollout import collect
from grpo_jax.rollout.choose import Choice


@dataclasses.dataclass(frozen=True)
class Evaluation:
  correct: list[bool]  # greedy, one a problem, in order
  metrics: dict[str, float]


def pass_at_k(n: int, c: int, k: int) -> float:
  """1 - C(n - c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one
  (Chen et al. 2021, 2107.03374, equation 1)."""
  return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _majority(texts: Sequence[str], correct: Sequence[bool]) -> float:
  """Share of the commonest answers (ties share) that is right."""
  counts = collections.Counter(texts)
  top = max(counts.values())
  winners = {t for t, count in counts.items() if count == top}
  verdict = {t: bool(ok) for t, ok in zip(texts, correct, strict=True)}
  return sum(verdict[t] for t in winners) / len(winners)


def evaluate(
  s: collect.Sampling, params, pool, problems: Sequence, batch: int, samples: int, choice: Choice
) -> Evaluation:
  """Greedy accuracy of every problem, in all and by meta["source"]; with `samples` = k > 0 also
  pass@k and maj@k of k samples under `choice`. Rows of the last batch are padded, not dropped."""
  greedy = dataclasses.replace(s, group=1, choice=Choice(temperature=0.0), slots=0)
  correct, truncated = [], []
  for chunk in _chunks(problems, batch):
    (tokens, _, length, stopped), _, _ = collect.generate(greedy, params, _full(chunk, batch), 0)
    n = len(chunk)
    _, scores, _ = collect.score(greedy, pool, chunk, tokens[:n], length[:n])
    correct += scores["correct"][:, 0].tolist()
    truncated += (~stopped[:n, 0]).tolist()
  metrics = {
    "eval_accuracy": float(np.mean(correct)),
    "eval_problems": len(correct),
    "eval_truncated": float(np.mean(truncated)),
  }
  labels = [str(p.meta.get("source")) for p in problems]
  for label in sorted(set(labels)):
    of_label = [c for c, x in zip(correct, labels, strict=True) if x == label]
    metrics[f"eval_accuracy/{label}"] = float(np.mean(of_label))
    metrics[f"eval_problems/{label}"] = len(of_label)
  if samples:
    metrics |= _sampled(s, params, pool, problems, batch, samples, choice)
  return Evaluation(correct, metrics)


def _sampled(s, params, pool, problems, batch, k, choice) -> dict[str, float]:
  s = dataclasses.replace(s, group=k, choice=choice, slots=0)
  passed, majority, mean = [], [], []
  for chunk in _chunks(problems, max(1, batch // k)):
    full = _full(chunk, max(1, batch // k))
    (tokens, _, length, _), _, _ = collect.generate(s, params, full, 0)
    n = len(chunk)
    texts, scores, _ = collect.score(s, pool, chunk, tokens[:n], length[:n])
    for row, ok in zip(texts, scores["correct"], strict=True):
      passed.append(pass_at_k(k, int(ok.sum()), k))
      majority.append(_majority([t.strip() for t in row], ok))
      mean.append(float(ok.mean()))
  return {
    f"eval_pass@{k}": float(np.mean(passed)),
    f"eval_maj@{k}": float(np.mean(majority)),
    f"eval_mean@{k}": float(np.mean(mean)),
  }


def _chunks(items: Sequence, size: int):
  return [items[i : i + size] for i in range(0, len(items), size)]


def _full(chunk: Sequence, size: int) -> list:
  return list(chunk) + [chunk[0]] * (size - len(chunk))
