"""What a study leaves: verdict.json, curves.json, curves.png, and what is printed.

verdict.json has one set of keys for every kind of study; see `write`. An older one's verdict,
statements and seeds stay readable under "history".
"""

import json
from pathlib import Path

import numpy as np

from experiments.common import figures, statements, study, verdict
from experiments.common.data import Data
from experiments.common.trial import Found
from grpo_jax.run import atomic


def write(c, module, found: Found, folder: Path, say) -> dict:
  """Writes the evidence to `folder`; the contents of verdict.json."""
  judged = {s: verdict.judge(module, d) for s, d in found.settings.items()}
  words = {s: j["verdict"] for s, j in judged.items()}
  word, where = verdict.of_paper(words)
  file = folder / "verdict.json"
  old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
  config = json.loads(c.to_json_best_effort())
  same = old.get("config") == config | {"part": old.get("config", {}).get("part")}
  kept = lambda key, new: old.get(key) if new is None and same else new
  long = kept("long", found.long and _long(module, found))
  owed = word in verdict.OWING and long is None
  out = {
    "protocol": verdict.PROTOCOL,
    "claim": module.CLAIM,
    "verdict": word,
    "where": where,
    "settings": words,
    "owed": f"python -m experiments.claim {c.slug}:long" if owed else None,
    "scale": scale(c, module, found),
    "untested": module.UNTESTED,
    "changes": list(module.CHANGES),
    "dial": c.dial.name,
    "effect": {s: verdict.effect(d) for s, d in found.settings.items()},
    "found": judged,
    "long": long,
    "ablations": kept("ablations", found.ablations and _ablations(module, found.ablations)),
    "tuning": found.tuning,
    "seeds": found.seeds,
    "numbers": {s: numbers(d, module.CURVES) for s, d in found.settings.items()},
    "rule": statements.RULE,
    "notes": module.NOTES,
    "history": history(module, old),
    "config": config,
    "command": f"python -m experiments.claim {c.slug}{':debug' if c.debug else ''}",
    "warm_steps": found.warm,
    "minutes": round(found.seconds / 60, 1),
  }
  folder.mkdir(parents=True, exist_ok=True)
  atomic.write_json(file, out, indent=1, ensure_ascii=False)
  curves = {
    f"{s}, {m}": panel
    for s, d in found.settings.items()
    for m in module.CURVES
    if (panel := lines(d, m))
  }
  atomic.write_json(folder / "curves.json", {"curves": curves, "effect": out["effect"]})
  figures.study(curves, out["effect"], c.dial.name, folder / "curves.png")
  tell(out, say)
  say(f"evidence: {folder}")
  return out


def history(module, old: dict) -> list[dict]:
  """Verdicts of the first protocol, then what was changed after a look."""
  if old and old.get("protocol") != verdict.PROTOCOL:
    first = [{"protocol": 1} | {k: old.get(k) for k in ("verdict", "statements", "seeds")}]
  else:
    first = [h for h in old.get("history", []) if h.get("protocol") == 1]
  return first + [dict(h) for h in module.HISTORY]


def scale(c, module, found: Found) -> dict:
  """{"parameters", "world", "tokens"}: how small this is. A study with a `measure` of its own says
  it in SCALE."""
  strong = study.strong(c)
  d = found.settings[strong]
  cell = study.cell(c, strong, d.main, found.tuning[d.main]["chosen"])
  out = {"world": cell.spec["world"] or None, "params": cell.spec["params"]}
  if hasattr(module, "measure"):
    return out | dict(module.SCALE)
  from experiments.common import fused_runs

  tokens = round(float(d.final(d.main, "sampled").mean())) if d.has(d.main, "sampled") else None
  return {"parameters": fused_runs.parameters(cell)} | out | {"tokens": tokens}


def numbers(d: Data, measures) -> dict:
  """At the end: {measure: {arm: [mean, low, high]}}."""
  out = {}
  for m in measures:
    arms = {a: _mean(d.final(a, m)) for a in d.runs if d.has(a, m)}
    out |= {m: arms} if arms else {}
  return out


def lines(d: Data, measure: str) -> dict:
  """{arm: {"steps", "value", "low", "high"}}."""
  out = {}
  for arm in d.runs:
    if not d.has(arm, measure):
      continue
    x = d(arm, measure)
    every = d.c.plan.get("eval_every", 1)
    first = measure.startswith("train")
    each = [_mean(column) for column in x.T]
    value, low, high = (list(v) for v in zip(*each, strict=True))
    steps = [(i + first) * every for i in range(x.shape[1])]
    out[arm] = {"steps": steps, "value": value, "low": low, "high": high}
  return out


def _mean(x: np.ndarray) -> list:
  low, high = statements.interval(np.asarray(x))
  return [round(float(v), 4) if np.isfinite(v) else None for v in (np.mean(x), low, high)]


def _long(module, found: Found) -> dict:
  """The longer attempt: the claims that its two arms can answer, and the effect."""
  assert found.long is not None
  judged = verdict.judge(module, found.long)
  said = [s for s in judged["statements"] if s["result"] != "not run" and s["role"] != "gate"]
  d = found.long
  scores = {a: _mean(d.score(a)) for a in d.runs}
  times = {"budget": study.LONG, "seeds": judged["seeds"]}
  return times | {"score": scores, "effect": verdict.effect(d), "statements": said}


def _ablations(module, d: Data) -> dict:
  """Main minus each ablation by the score, and the sides that read them."""
  arms = {}
  sign = -1.0 if d.less else 1.0
  for name in study.by_role(d.c, "ablation"):
    s = statements.side(f"{d.main} - {name}", sign * d.score(d.main), ">", sign * d.score(name))
    arms[name] = statements.read(s, d.margin(d.score(name).of))
  said = [s for s in verdict.judge(module, d)["statements"] if s["role"] == "side"]
  return {"arms": arms, "statements": said}


def tell(out: dict, say) -> None:
  """The verdict with its scale, line by line."""
  for setting, judged in out["found"].items():
    say(f"{out['dial']} = {setting}: {judged['verdict']} ({judged['seeds']} seeds)")
    for f in judged["statements"]:
      say(f"  {f['role']:>5} {f['result']:<10} {sentence(f)}")
  where = f" ({', '.join(out['where'])})" if out["verdict"] == "in part" else ""
  say(f"verdict: {out['verdict']}{where}; {scale_words(out['scale'])}")
  say(f"not tested: {out['untested']}")
  if out["owed"]:
    say(f"owed before this is final: the longer attempt, {out['owed']}")


def sentence(f: dict) -> str:
  if "x" not in f:
    return f["text"]
  if f["role"] == "gate":
    why = f" ({f['why']})" if "why" in f else ""
    return f"{f['text']}: {f['x']:.3f} against {f['y']:.3f}{why}"
  show = lambda v: "-" if v is None else f"{v:.3f}"
  return (
    f"{f['text']}: {show(f['x'])} - {show(f['y'])} = {show(f['difference'])} "
    f"[{show(f['low'])}, {show(f['high'])}], margin {show(f['margin'])}, "
    f"visible {show(f['visible'])}"
  )


def scale_words(scale: dict) -> str:
  count = lambda n, unit: f"{n / 1e6:.2g}M {unit}" if n >= 1e5 else f"{n} {unit}"
  parts = [count(scale["parameters"], "parameters")] if scale.get("parameters") else []
  parts += [scale["world"]] if scale.get("world") else []
  parts += [count(scale["tokens"], "tokens a run")] if scale.get("tokens") else []
  return ", ".join(parts)
