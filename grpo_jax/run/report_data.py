"""A run folder as plain data for the report: series, intervals, warnings, chosen rollouts."""

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.run import metrics as metrics_lib
from grpo_jax.run import rollout_log

MAX_POINTS = 400  # of a curve; longer ones are averaged in equal buckets
ROLLOUT_BYTES = 600_000  # of JSON, so that the page stays below 1 MB
ROLLOUT_STEPS = 24
PEAKS = ("logp_gap", "max_ratio", "nonfinite", "reward_failed")
TOKEN_FIELDS = ("logp", "entropy", "ratio", "adv")


def load(workdir) -> dict[str, Any]:
  """Everything that the report shows, JSON-ready. Missing files give empty parts, not errors.

  Raises UserError if `workdir` is not a folder.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise UserError(f"report: no folder {workdir}; pass the run's --workdir")
  rows = metrics_lib.read_metrics(workdir)
  final = _json(workdir / "final.json")
  config = _json(workdir / "config.json") or {}
  train = series([r for r in rows if r.get("kind", "train") == "train"])
  evals = accuracy([r for r in rows if r.get("kind") == "eval"])
  run = {
    "name": workdir.resolve().name,
    "config": flatten(config),
    "subject": subject(config),
    "planned": config.get("steps") if isinstance(config.get("steps"), int) else None,
    "final": final,
    "train": shorten(train),
    "evals": evals,
    "steps": int(max((r["step"] for r in rows), default=0)),
    "rows": len(train["step"]),
    "tokens": _sum(train, "tokens"),
    "sample_s": _sum(train, "time_sample"),
    "update_s": _typical(train.get("time_total", [])),
    "wall_s": (final or {}).get("wall_s") or _sum(train, "time_total"),
    "rollouts": choose_rollouts(workdir),
  }
  run["headline"] = headline(evals, final)
  run["warnings"] = warnings_of(train, rows, run)
  return run


def series(rows: list[dict]) -> dict[str, list]:
  """{"step": [...], metric: [value or None, ...]}; rows of one step are merged, the later wins."""
  by_step: dict[int, dict] = {}
  for row in rows:
    by_step[row["step"]] = by_step.get(row["step"], {}) | row
  steps = sorted(by_step)
  names = dict.fromkeys(k for s in steps for k in by_step[s] if k not in ("step", "kind"))
  out: dict[str, list] = {"step": steps}
  for name in names:
    out[name] = [by_step[s].get(name) for s in steps]
  return out


def accuracy(rows: list[dict]) -> dict[str, Any]:
  """Accuracy in all and per label with Wilson intervals where eval_problems says of how many."""
  table = series(rows)
  out: dict[str, Any] = {"step": table["step"], "groups": [], "other": {}}
  for name, values in table.items():
    if name == "eval_accuracy" or name.startswith("eval_accuracy/"):
      label = name.partition("/")[2]
      counts = table.get("eval_problems" + ("/" + label if label else ""))
      out["groups"].append({"label": label or "all", "y": values, **_bands(values, counts)})
    elif name != "step" and not name.startswith("eval_problems"):
      out["other"][name] = values
  if len(out["groups"]) == 2:  # one label is all there is: do not show it twice
    out["groups"] = [g for g in out["groups"] if g["label"] == "all"] or out["groups"]
  out["groups"].sort(key=lambda g: (g["label"] != "all", g["label"]))
  return out


def _bands(values, counts) -> dict[str, list]:
  low, high, n = [], [], []
  for p, count in zip(values, counts or [None] * len(values), strict=True):
    bounds: tuple = (None, None)
    if p is not None and count:
      bounds = metrics_lib.wilson(round(p * count), int(count))
    low.append(bounds[0])
    high.append(bounds[1])
    n.append(count)
  return {"low": low, "high": high, "n": n}


def headline(evals: dict, final: dict | None) -> dict[str, Any]:
  """Accuracy before and after, the gain and its interval: from final.json, else from the evals.

  Without final.json the interval is Newcombe's for two separate samples, wider than the paired one.
  """
  final = final or {}
  out: dict[str, Any] = {"problems": final.get("problems"), "paired": True}
  overall = next((g for g in evals["groups"] if g["label"] == "all"), None)
  known = [i for i, y in enumerate(overall["y"]) if y is not None] if overall else []
  out["before"] = final.get("accuracy_before")
  out["after"] = final.get("accuracy_after")
  if overall and known:
    i, j = known[0], known[-1]
    out["before"] = overall["y"][i] if out["before"] is None else out["before"]
    if out["after"] is None and j > i:
      out["after"] = overall["y"][j]
    out["problems"] = out["problems"] or overall["n"][j]
  low, high = final.get("gain_low"), final.get("gain_high")
  if low is None and out["before"] is not None and out["after"] is not None and out["problems"]:
    low, high = _newcombe(out["before"], out["after"], int(out["problems"]))
    out["paired"] = False
  out["low"], out["high"] = low, high
  return out


def _newcombe(before: float, after: float, n: int) -> tuple[float, float]:
  l1, u1 = metrics_lib.wilson(round(before * n), n)
  l2, u2 = metrics_lib.wilson(round(after * n), n)
  d = after - before
  return d - math.hypot(after - l2, u1 - before), d + math.hypot(u2 - after, before - l1)


def shorten(table: dict[str, list], limit: int = MAX_POINTS) -> dict[str, list]:
  """At most `limit` points a curve: one for each of equal buckets, placed at its last step.

  A bucket's mean, but its maximum for the metrics of `PEAKS`, where one bad update must stay seen.
  """
  steps = table["step"]
  if len(steps) <= limit:
    return table
  edges = [round(i * len(steps) / limit) for i in range(limit + 1)]
  out: dict[str, list] = {"step": [steps[b - 1] for b in edges[1:]]}
  for name, values in table.items():
    if name != "step":
      pool = _peak if name in PEAKS else _mean
      out[name] = [pool(values[a:b]) for a, b in itertools.pairwise(edges)]
  return out


def warnings_of(train: dict, rows: list[dict], run: dict) -> list[dict[str, str]]:
  """What a person should act on: {"level": "bad" | "note", "what", "do"}, the gravest first."""
  last = {k: _mean(v[-10:]) for k, v in train.items()}
  out = []

  def say(level: str, what: str, do: str) -> None:
    out.append({"level": level, "what": what, "do": do})

  if (bad := sum(r.get("nonfinite", 0) for r in rows)) > 0:
    first = next(r["step"] for r in rows if r.get("nonfinite"))
    say(
      "bad",
      f"{bad} values were NaN or infinite, the first at update {first}.",
      "Lower the learning rate or clip the gradient harder; then look at that update's rollouts.",
    )
  if (same := last.get("zero_variance")) is not None and same > 0.8:
    say(
      "bad",
      f"In the last updates {same:.0%} of the groups had equal rewards: no gradient from them.",
      "Mix in easier or harder problems, sample more completions a prompt, or resample.",
    )
  if (cut := last.get("truncated")) is not None and cut > 0.5:
    say(
      "bad",
      f"{cut:.0%} of the completions were cut at the token limit in the last updates.",
      "Raise the limit of new tokens, check the stop tokens, or add a length penalty.",
    )
  gaps = [(g, s) for g, s in zip(train.get("logp_gap", []), train["step"], strict=False) if g]
  if gaps and max(gaps)[0] > 1e-3:
    gap, step = max(gaps)
    say(
      "bad",
      f"Sampler and trainer disagreed by up to {gap:.1e} nats on a token (update {step}).",
      "In float32 this is a bug (weights, temperature, masks); in bfloat16 compare a float32 run.",
    )
  if (failed := sum(x or 0 for x in train.get("reward_failed", []))) > 0:
    say(
      "note",
      f"The reward failed on {failed:.0f} completions (time, memory or an exception): scored 0.",
      "A few are normal for hostile text. Many: raise the scorer's limits or fix the scorer.",
    )
  ratio = max((x for x in train.get("max_ratio", []) if x is not None), default=0)
  if ratio > 10:
    say(
      "bad",
      f"The importance ratio reached {ratio:.3g}.",
      "Take fewer epochs on a batch, or a smaller learning rate.",
    )
  entropy = [x for x in train.get("entropy", []) if x is not None]
  early, late = sum(entropy[:5]) / 5, sum(entropy[-5:]) / 5
  if len(entropy) >= 15 and late < 0.1 * early:
    say(
      "note",
      f"Entropy fell from {early:.2f} to {late:.3f} nats.",
      "Exploration is nearly gone: raise the upper clip, add KL or entropy, or stop here.",
    )
  return _about_evaluation(out, run, say)


def _about_evaluation(out: list, run: dict, say) -> list:
  head = run["headline"]
  if head["high"] is not None and head["high"] < 0:
    say(
      "bad",
      "Held-out accuracy fell, and the interval excludes zero.",
      "Compare the reward curve: if that rose, the reward pays for something else.",
    )
  if head["before"] is None:
    say("note", "No evaluation was recorded.", "Turn evaluation on to know what was learnt.")
  if run["final"] is None:
    say(
      "note",
      f"The run has not finished: the last row is of update {run['steps']}.",
      "The same command resumes it.",
    )
  return sorted(out, key=lambda w: w["level"])


# ---- rollouts ------------------------------------------------------------------------------------


def choose_rollouts(workdir: Path, budget: int = ROLLOUT_BYTES) -> list[dict]:
  """Rollouts of steps spread over the run, the first and the last among them, within the budget."""
  files = band(sorted((workdir / "rollouts").glob("step_*.jsonl")), ROLLOUT_STEPS)
  steps = [_compact(rollout_log.read_rollouts(path)) for path in files]
  steps = [s for s in steps if s["groups"]]
  sizes = {id(s): len(json.dumps(s)) for s in steps}
  count = len(steps)
  while count > 2 and sum(sizes[id(s)] for s in band(steps, count)) > budget:
    count -= 1
  kept = band(steps, count)
  return [_shrink(s, budget // max(len(kept), 1)) for s in kept] if count <= 2 else kept


def band(items: list, count: int) -> list:
  """At most `count` items at even distances, the first and the last included."""
  if len(items) <= count:
    return items
  if count <= 1:
    return items[-count:] if count else []
  return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _compact(groups: list[dict]) -> dict:
  out = []
  for group in groups:
    samples = []
    for s in group.get("samples", []):
      tokens = s.get("tokens") or [{"text": s.get("text", "")}]
      small = {k: s[k] for k in ("reward", "parts", "correct", "truncated", "length") if k in s}
      small |= {"total": s.get("adv"), "text": [t.get("text", "") for t in tokens]}
      for name in TOKEN_FIELDS:
        if any(name in t for t in tokens):
          small[name] = [t.get(name) for t in tokens]
      samples.append(small)
    keep = {k: group.get(k) for k in ("prompt_id", "label", "prompt", "answer")}
    out.append({**keep, "samples": samples})
  return {"step": groups[0]["step"] if groups else 0, "groups": out}


def _shrink(step: dict, budget: int) -> dict:
  tokens = max((len(s["text"]) for g in step["groups"] for s in g["samples"]), default=0)
  chars = 4000
  while len(json.dumps(step)) > budget and (tokens > 8 or chars > 50):
    tokens, chars = max(tokens // 2, 8), max(chars // 2, 50)
    for group in step["groups"]:
      group["prompt"] = (group["prompt"] or "")[-chars:]
      for s in group["samples"]:
        s["text"] = [t[:chars] for t in s["text"][:tokens]]
        for name in TOKEN_FIELDS:
          if name in s:
            s[name] = s[name][:tokens]
  while len(json.dumps(step)) > budget and len(step["groups"]) > 1:
    step["groups"].pop()
  if len(json.dumps(step)) > budget:
    for group in step["groups"]:
      group["samples"] = group["samples"][:8]
  return step


def subject(config: dict) -> str:
  """What was trained on what: 'grpo · smollm2 · chain_sum · 8 prompts × 16 completions'."""
  data, batch = config.get("data"), config.get("batch")
  parts = [_name(config.get("method")), _name(config.get("model")), _name(data)]
  if isinstance(data, dict) and isinstance(data.get("mix"), list):
    parts[-1] = ", ".join(dict.fromkeys(_name(part) for part in data["mix"])) or parts[-1]
  if isinstance(batch, dict) and "prompts" in batch and "group" in batch:
    parts.append(f"{batch['prompts']} prompts × {batch['group']} completions")
  return " · ".join(p[:120] for p in parts if p)


def _name(value) -> str:
  if isinstance(value, dict):
    value = next((value[k] for k in ("name", "path", "source") if value.get(k)), "")
  text = str(value or "")
  return text.rstrip("/").rpartition("/")[2] if text.startswith(("/", "~", ".")) else text


# ---- small parts ---------------------------------------------------------------------------------


def flatten(config, prefix: str = "") -> list[tuple[str, str]]:
  """[("a.b", "value"), ...] of nested dictionaries; lists stay whole."""
  out = []
  for key, value in config.items():
    if isinstance(value, dict) and value:
      out += flatten(value, f"{prefix}{key}.")
    else:
      out.append((prefix + str(key), value if isinstance(value, str) else json.dumps(value)))
  return out


def _mean(values: list) -> float | None:
  known = [x for x in values if x is not None]
  return sum(known) / len(known) if known else None


def _sum(table: dict, name: str) -> float:
  return sum(x or 0 for x in table.get(name, []))


def _typical(seconds: list) -> float | None:
  """The median without the first, which compiles."""
  known = [x for x in (seconds[1:] or seconds) if x is not None]
  return statistics.median(known) if known else None


def _peak(values: list) -> float | None:
  return max((x for x in values if x is not None), default=None)


def _json(path: Path) -> dict | None:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return None
  except ValueError:
    raise UserError(f"{path}: not JSON; remove or mend it") from None
  return value if isinstance(value, dict) else None
