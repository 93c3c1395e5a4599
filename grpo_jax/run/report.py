"""report.html of a run folder: one page that needs no network, and a plot for a README.

Everything a model or a config wrote is escaped: it enters the page as HTML text or as JSON with
<, > and & escaped, the page's script only makes text nodes of it, and the page's content security
policy runs no other script than ours.
"""

import base64
import hashlib
import html
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

from grpo_jax.run import atomic, report_data
from grpo_jax.run.metrics import duration


def write_report(workdir) -> Path:
  """Writes workdir/report.html from metrics.jsonl, config.json, final.json and rollouts/.

  Any of them may be missing: the page says so. Returns the path. Raises UserError for a folder
  that does not exist and for a file that cannot be read.
  """
  path = Path(workdir) / "report.html"
  atomic.write(path, render(report_data.load(workdir)))
  return path


def render(run: dict[str, Any]) -> str:
  """The page of what `report_data.load` returned."""
  script = _asset("page.js")
  shown = {k: run[k] for k in ("train", "evals", "rollouts")}
  fields = {
    "title": _text(run["name"]),
    "subtitle": _text(run["subject"] or "a grpo_jax run"),
    "style": _asset("page.css"),
    "tiles": _tiles(run),
    "warnings": _warnings(run["warnings"]),
    "table": _table(run["evals"]),
    "config": _config(run["config"]),
    "data": script_json(shown),
    "script": script,
    "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
  }
  # One pass, so that a {{name}} inside a value stays as it is.
  return re.sub(r"\{\{(\w+)\}\}", lambda m: fields[m[1]], _asset("page.html"))


def script_json(value) -> str:
  """JSON that may stand inside a script element: no <, > or & in it, and only ASCII."""
  text = json.dumps(value, allow_nan=False, separators=(",", ":"))
  return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def plots(workdir, path=None) -> Path | None:
  """Held-out accuracy against updates with 95% intervals, as a PNG below 100 KB.

  Written to `path` (default workdir/accuracy.png). None if matplotlib is not installed or the run
  has no evaluation.
  """
  evals = report_data.load(workdir)["evals"]
  if not evals["groups"]:
    return None
  try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
  except ImportError:
    return None
  path = Path(path) if path else Path(workdir) / "accuracy.png"
  figure = Figure(figsize=(6.4, 3.4), dpi=110, layout="constrained")
  axes = figure.subplots()
  colours = ("#2266b3", "#c25a12", "#0f7f68", "#8348ad", "#9a7400", "#b03060")
  for i, group in enumerate(evals["groups"]):
    _plot_group(axes, evals["step"], group, colours[i % len(colours)])
  axes.set_ylim(0, 1)
  axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set_xlabel("update")
  axes.set_title("Greedy accuracy on held-out problems, 95% intervals", fontsize=10, loc="left")
  axes.grid(axis="y", color="#e3e3de", linewidth=0.8)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.tick_params(length=0)
  axes.legend(frameon=False, fontsize=9)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  return path


def _plot_group(axes, steps, group, colour) -> None:
  known = [i for i, y in enumerate(group["y"]) if y is not None]
  x = [steps[i] for i in known]
  axes.plot(x, [group["y"][i] for i in known], color=colour, marker="o", ms=4, label=group["label"])
  band = [i for i in known if group["low"][i] is not None]
  low, high = [group["low"][i] for i in band], [group["high"][i] for i in band]
  axes.fill_between([steps[i] for i in band], low, high, color=colour, alpha=0.13, linewidth=0)


# ---- the parts of the page that are written here, and read without a script ----------------------


def _tiles(run: dict) -> str:
  head, updates = run["headline"], run["rows"]
  tiles = [_accuracy_tile(head)]
  planned = f"not finished: {run['planned']:,} planned" if run["planned"] else "not finished"
  done = "finished" if run["final"] is not None else planned
  tiles.append(_tile("Updates", f"{updates:,}", done))
  per = f"{run['update_s']:.3g} s an update (median)" if run["update_s"] else ""
  tiles.append(_tile("Wall time", duration(run["wall_s"]) if run["wall_s"] else "–", per))
  rate = f"{run['tokens'] / run['sample_s']:,.0f} a second of sampling" if run["sample_s"] else ""
  tiles.append(_tile("Tokens sampled", _count(run["tokens"]) if run["tokens"] else "–", rate))
  return "".join(tiles)


def _accuracy_tile(head: dict) -> str:
  before, after = head["before"], head["after"]
  name = "Held-out accuracy, before → after"
  if before is None and after is None:
    return _tile(name, "–", "no evaluation was recorded", "lead")
  shown = " → ".join(_percent(x) if x is not None else "–" for x in (before, after))
  if before is None or after is None:
    return _tile(name, shown, "", "lead")
  gain = 100 * (after - before)
  low, high = head["low"], head["high"]
  sure = low is not None and (low > 0 or high < 0)
  style = ("up" if gain > 0 else "down") if sure else ""
  detail = f'<span class="{style}">{gain:+.1f} points</span>'
  if low is not None:
    kind = "95% interval" if head["paired"] else "95% interval, unpaired"
    detail += f" ({kind} {100 * low:+.1f} to {100 * high:+.1f})"
  if head["problems"]:
    detail += f", {int(head['problems'])} problems"
  return _tile(name, shown, detail, "lead", raw=True)


def _tile(name: str, value: str, detail: str, style: str = "", raw: bool = False) -> str:
  detail = detail if raw else _text(detail)
  return (
    f'<div class="panel tile {style}"><span class="k">{_text(name)}</span>'
    f'<b>{_text(value)}</b><span class="d">{detail}</span></div>'
  )


def _warnings(found: list[dict]) -> str:
  items = "".join(
    f'<li class="{w["level"]}"><b>{_text(w["what"])}</b> <span>{_text(w["do"])}</span></li>'
    for w in found
  )
  return f'<ul class="warn" aria-label="Warnings">{items}</ul>' if items else ""


def _table(evals: dict) -> str:
  rows = ""
  for group in evals["groups"]:
    known = [i for i, y in enumerate(group["y"]) if y is not None]
    if not known:
      continue
    i, j = known[0], known[-1]
    cells = "".join(f'<td class="n">{_share(group, k)}</td>' for k in (i, j))
    gain = 100 * (group["y"][j] - group["y"][i])
    count = f"{group['n'][j]:.0f}" if group["n"][j] else "–"
    rows += (
      f'<tr><td>{_text(group["label"])}</td><td class="n">{count}</td>{cells}'
      f'<td class="n">{gain:+.1f}</td></tr>'
    )
  if not rows:
    return ""
  first, last = evals["step"][0], evals["step"][-1]
  return (
    '<div class="scroll"><table><thead><tr><th>Problems</th><th class="n">Number</th>'
    f'<th class="n">Update {first}</th><th class="n">Update {last}</th>'
    f'<th class="n">Points</th></tr></thead><tbody>{rows}</tbody></table></div>'
  )


def _share(group: dict, i: int) -> str:
  low, high = group["low"][i], group["high"][i]
  band = f" ({_percent(low)} to {_percent(high)})" if low is not None else ""
  return f"<b>{_percent(group['y'][i])}</b>{band}"


def _percent(x: float) -> str:
  # Halves go up, as in the page's script: both print the same number.
  return f"{math.floor(1000 * x + 0.5) / 10:.1f}%"


def _config(pairs: list[tuple[str, str]]) -> str:
  if not pairs:
    return '<p class="panel hint">No config.json in the run folder.</p>'
  sections: dict[str, list[tuple[str, str]]] = {}
  for key, value in pairs:
    section, _, rest = key.partition(".") if "." in key else ("", "", key)
    sections.setdefault(section, []).append((rest, value))
  tables = ""
  for section, rows in sorted(sections.items(), key=lambda item: item[0] != ""):
    body = "".join(
      f"<tr><td>{_text(k)}</td><td><code>{_text(v[:300])}</code></td></tr>" for k, v in rows
    )
    tables += f"<table><caption>{_text(section)}</caption><tbody>{body}</tbody></table>"
  return f'<div class="panel cols">{tables}</div>'


def _count(number: float) -> str:
  for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
    if number >= size:
      return f"{number / (1e3 if unit == 'k' else size):.3g}{unit}"
  return f"{number:.0f}"


def _text(value) -> str:
  return html.escape(str(value), quote=True)


def _asset(name: str) -> str:
  return resources.files("grpo_jax.run").joinpath("report_assets", name).read_text("utf-8")
