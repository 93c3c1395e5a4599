"""report.html of a comparison: one file that needs no network and no script."""

import html
import json

from experiments.common.arena import results as arena_results
from grpo_jax.run.page_style import COLOURS, STYLE

TABLES = """
td,th{text-align:right;white-space:nowrap}td:first-child,th:first-child{text-align:left}
.wide{overflow-x:auto}.soft{color:#667}details{margin:8px 0}
"""


def render(r: dict) -> str:
  arms = list(r["arms"])
  colour = {a: COLOURS[i % len(COLOURS)] for i, a in enumerate(arms)}
  dash = {a: "" if i < len(COLOURS) else "5 3" for i, a in enumerate(arms)}
  parts = [
    "<h1>Methods on token worlds</h1>",
    f"<p>Held-out problems after the last update, {r['seeds']} seeds: the share solved, or where "
    "the caption says so the mean reward, of one rollout a problem. "
    "Interquartile means with 95% stratified bootstrap intervals. Equal for all arms of a world: "
    "model, warm start, prompts, group size, updates and so sampled rollouts, except where an arm "
    "says otherwise in its settings; the learning rate of each arm was chosen from one grid on "
    "seeds that are not shown.</p>",
    f'<div class="wide">{_table(arena_results.table(r))}</div>',
    _ranks(r["ranks"]),
    "<h2>Learning curves</h2>",
    f"<p>{_legend(colour, dash)}</p>",
    '<div class="grid">',
    *(_curves(name, w, colour, dash) for name, w in r["worlds"].items()),
    "</div>",
    "<h2>Arms</h2>",
    *(_arm(a, r, colour) for a in arms),
  ]
  body = "\n".join(p for p in parts if p)
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width"><title>Methods on token worlds</title>'
    f"<style>{STYLE}{TABLES}</style><body>{body}</body></html>"
  )


def _table(markdown: str) -> str:
  lines = [[html.escape(x.strip()) for x in row.strip("| ").split(" | ")]
           for row in markdown.splitlines()]  # fmt: skip
  head = "".join(f"<th>{x}</th>" for x in lines[0])
  rows = "".join("<tr>" + "".join(f"<td>{x}</td>" for x in row) + "</tr>" for row in lines[2:])
  return f"<table><tr>{head}</tr>{rows}</table>"


def _legend(colour, dash) -> str:
  item = (
    '<svg width="26" height="10"><line x1="0" x2="26" y1="5" y2="5" stroke="{}" '
    'stroke-width="2.5" stroke-dasharray="{}"/></svg> {}'
  )
  return " &nbsp; ".join(item.format(c, dash[a], html.escape(a)) for a, c in colour.items())


def _curves(name: str, world: dict, colour: dict, dash: dict, w: int = 330, h: int = 210) -> str:
  last = max(max(a["steps"]) for a in world["arms"].values()) or 1
  x = lambda s: 34 + (w - 44) * s / last
  y = lambda v: h - 24 - (h - 36) * v
  out = []
  for v in (0, 0.25, 0.5, 0.75, 1):
    out.append(f'<line x1="34" x2="{w - 10}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ececea"/>')
    out.append(f'<text x="28" y="{y(v) + 4:.1f}" text-anchor="end">{v:.0%}</text>')
  for s in (0, last):
    out.append(f'<text x="{x(s):.1f}" y="{h - 6}" text-anchor="middle">{s}</text>')
  for arm, a in world["arms"].items():
    up = [f"{x(s):.1f},{y(v):.1f}" for s, v in zip(a["steps"], a["curve"]["high"], strict=True)]
    down = [f"{x(s):.1f},{y(v):.1f}" for s, v in zip(a["steps"], a["curve"]["low"], strict=True)]
    mid = [f"{x(s):.1f},{y(v):.1f}" for s, v in zip(a["steps"], a["curve"]["value"], strict=True)]
    band = " ".join(up + down[::-1])
    out.append(f'<polygon points="{band}" fill="{colour[arm]}" opacity="0.08"/>')
    out.append(
      f'<polyline points="{" ".join(mid)}" fill="none" stroke="{colour[arm]}" stroke-width="2" '
      f'stroke-dasharray="{dash[arm]}"><title>{html.escape(arm)}</title></polyline>'
    )
  spec = world["spec"]
  label = html.escape(f"{name}: {spec['world']} {json.dumps(spec['params'])}, {spec['measure']}")
  svg = f'<svg viewBox="0 0 {w} {h}" width="100%" role="img">{"".join(out)}</svg>'
  return f"<figure>{svg}<figcaption>{label}</figcaption></figure>"


def _ranks(ranks: dict, w: int = 640) -> str:
  """A bar a method: how often it is first, second, ... over worlds and resampled seeds."""
  if len(ranks) < 2:
    return ""
  order = sorted(ranks, key=lambda a: sum(i * p for i, p in enumerate(ranks[a])))
  rows = []
  for j, arm in enumerate(order):
    left = 150.0
    for i, p in enumerate(ranks[arm]):
      wide = p * (w - 160)
      shade = 0.95 - 0.85 * i / max(len(order) - 1, 1)
      rows.append(
        f'<rect x="{left:.1f}" y="{j * 20}" width="{wide:.1f}" height="16" fill="#2266b3" '
        f'opacity="{shade:.2f}"><title>rank {i + 1}: {p:.0%}</title></rect>'
      )
      left += wide
    rows.append(f'<text x="142" y="{j * 20 + 12}" text-anchor="end">{html.escape(arm)}</text>')
  return (
    "<h2>Ranks</h2><p class=soft>How often an arm is first (dark), second, ... (lighter), over "
    "worlds and resampled seeds; only arms that ran on every world.</p>"
    f'<svg viewBox="0 0 {w} {len(order) * 20}" width="{w}">{"".join(rows)}</svg>'
  )


def _arm(arm: str, r: dict, colour: dict) -> str:
  rows = []
  for name, world in r["worlds"].items():
    if arm not in world["arms"]:
      continue
    a = world["arms"][arm]
    f = a["final"]
    rows.append(
      f"<tr><td>{html.escape(name)}</td><td>{a['start']:.2f}</td><td>{f['value']:.2f} "
      f"[{f['low']:.2f}, {f['high']:.2f}]</td><td>{min(a['each']):.2f} – {max(a['each']):.2f}</td>"
      f"<td>{a['stuck']}</td><td>{a['lr']:g}</td>"
      f"<td>{html.escape(json.dumps(a['args']))}</td></tr>"
    )
  head = (
    "<tr><th>world</th><th>before</th><th>after</th><th>least – most</th><th>seeds no better</th>"
    "<th>learning rate</th><th>settings</th></tr>"
  )
  title = f'<b style="color:{colour[arm]}">{html.escape(arm)}</b>'
  table = f"<table>{head}{''.join(rows)}</table>"
  return f"<details><summary>{title}</summary><div class=wide>{table}</div></details>"
