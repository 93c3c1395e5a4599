"""Rollouts as a person reads them: rollouts/step_000010.jsonl, one line a prompt.

{"step", "prompt_id", "label", "prompt", "answer", "samples": [{"text", "reward", "parts",
"correct", "truncated", "length", "adv", "tokens": [{"text", "logp", "entropy", "ratio", "adv"}]}]}
`tokens` holds the first tokens of a sample only when a step's budget is small; `length` is the
whole. Numbers keep four digits; NaN and infinity are null.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.run import atomic

TEXT_LIMIT = 4000  # characters of a prompt or completion that are kept
PER_TOKEN = ("logp", "entropy", "ratio", "adv")


def groups_of(
  *,
  prompt_id,
  prompts: Sequence[str],
  tokens,
  length,
  reward,
  token_texts: Callable[[list[int]], list[str]],
  labels: Sequence[str] | None = None,
  answers: Sequence[Any] | None = None,
  texts: Sequence[Sequence[str]] | None = None,
  parts=None,
  part_names: Sequence[str] = (),
  correct=None,
  truncated=None,
  adv=None,
  logp=None,
  entropy=None,
  ratio=None,
  limit: int = 4,
  token_budget: int = 4000,
) -> list[dict]:
  """Arrays of a step as the groups that `write_rollouts` writes.

  prompt_id [N]; prompts, labels, answers: lists of N; tokens i[N, G, T]; length i[N, G];
  reward f[N, G], correct, truncated b[N, G]; parts f[N, G, C]; logp, entropy, ratio f[N, G, T];
  adv f[N, G] or f[N, G, T]; a flat [N * G, T] is read as [N, G, T]. All but the first few may be
  None. `token_texts(ids) -> [str]` gives the text of every token (see `pieces`); texts [N][G]
  defaults to the joined pieces. At most `limit` prompts, and `token_budget` tokens of all of them.
  """
  length = np.asarray(length)
  count, group = length.shape
  shaped = {"tokens": tokens, "logp": logp, "entropy": entropy, "ratio": ratio, "adv": adv}
  shaped = {k: _shape(k, v, count, group) for k, v in shaped.items() if v is not None}
  reward = np.asarray(reward).reshape(count, group)
  shown = min(count, limit)
  per_sample = max(16, token_budget // max(shown * group, 1))
  groups = []
  for n in range(shown):
    samples = []
    for g in range(group):
      ids = [int(i) for i in shaped["tokens"][n, g, : int(length[n, g])]]
      pieces_ = token_texts(ids)
      text = texts[n][g] if texts is not None else "".join(pieces_)
      sample: dict[str, Any] = {"text": text[:TEXT_LIMIT], "reward": _short(reward[n, g])}
      if parts is not None:
        names = part_names or [str(c) for c in range(np.asarray(parts).shape[-1])]
        sample["parts"] = {k: _short(np.asarray(parts)[n, g, c]) for c, k in enumerate(names)}
      for name, flags in (("correct", correct), ("truncated", truncated)):
        if flags is not None:
          sample[name] = bool(np.asarray(flags)[n, g])
      sample["length"] = len(ids)
      if "adv" in shaped:
        sample["adv"] = _short(_sample_adv(shaped["adv"][n, g], len(ids)))
      sample["tokens"] = _token_rows(pieces_[:per_sample], shaped, n, g)
      samples.append(sample)
    groups.append(
      {
        "prompt_id": int(np.asarray(prompt_id)[n]),
        "label": None if labels is None else str(labels[n]),
        "prompt": prompts[n][-TEXT_LIMIT:],
        "answer": None if answers is None or answers[n] is None else str(answers[n]),
        "samples": samples,
      }
    )
  return groups


def write_rollouts(workdir, step: int, groups: Sequence[Mapping[str, Any]], limit: int = 4) -> Path:
  """Writes the first `limit` groups to workdir/rollouts/step_<step>.jsonl; a rename makes the file
  appear whole. Writing a step again (after a resume) replaces it. Returns the path."""
  folder = Path(workdir) / "rollouts"
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"step_{int(step):06d}.jsonl"
  rows = ({"step": int(step), **group} for group in groups[:limit])
  text = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
  atomic.write(path, "".join(text))
  return path


def read_rollouts(path) -> list[dict]:
  """The groups of one file. Raises UserError naming the line that cannot be read."""
  groups = []
  for i, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n")):
    if not line.strip():
      continue
    try:
      groups.append(json.loads(line))
    except ValueError:
      raise UserError(f"{path}, line {i + 1}: not a rollout; remove the line") from None
  return groups


def pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
  """The text that each token adds: joined, they are decode(ids) for a decoder that appends.

  A character made of several byte-level tokens belongs to the last of them and the others are "".
  Linear in len(ids): only the tokens since the last complete character are decoded again.
  """
  ids = [int(i) for i in ids]
  out: list[str] = []
  start = read = 0  # ids[start:read] is shown already and gives the decoder its context
  for end in range(1, len(ids) + 1):
    before = decode(ids[start:read]) if read > start else ""
    now = decode(ids[start:end])
    if end < len(ids) and now.endswith("\ufffd"):
      out.append("")
      continue
    out.append(now[len(before) :])
    start, read = read, end
  return out


def _token_rows(pieces_: list[str], shaped, n: int, g: int) -> list[dict]:
  rows = []
  for t, text in enumerate(pieces_):
    row: dict[str, Any] = {"text": text}
    for name in PER_TOKEN:
      if name in shaped:
        values = shaped[name][n, g]
        row[name] = _short(values if values.ndim == 0 else values[t])
    rows.append(row)
  return rows


def _sample_adv(adv, length: int) -> float:
  if adv.ndim == 0:
    return float(adv)
  return float(np.mean(adv[:length])) if length else 0.0


def _shape(name: str, value, count: int, group: int):
  value = np.asarray(value)
  if value.ndim >= 2 and value.shape[:2] == (count, group):
    return value
  if value.shape[:1] == (count * group,):
    return value.reshape(count, group, *value.shape[1:])
  raise UserError(f"rollouts: {name} has shape {value.shape}, want ({count}, {group}, ...)")


def _short(value) -> float | None:
  value = float(value)
  return float(f"{value:.4g}") if math.isfinite(value) else None
