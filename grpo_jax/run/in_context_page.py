"""report.html of an in-context run: one file without scripts, from the JSON that the run left."""

import html
import json
from pathlib import Path

import numpy as np

from grpo_jax.run import atomic
from grpo_jax.run.page_style import COLOURS, STYLE


def write(workdir: Path) -> Path:
  """Raises OSError where the folder cannot be written."""
  path = workdir / "report.html"
  atomic.write(path, render(workdir))
  return path


def render(workdir: Path) -> str:
  steps = [json.loads(p.read_text()) for p in sorted((workdir / "exam").glob("step_*.json"))]
  oracles = _read(workdir / "oracles.json")
  final, config = _read(workdir / "final.json"), _read(workdir / "config.json")
  name = html.escape(f"{config.get('method', '')} on {config.get('data', {}).get('family', '')}")
  rows = "".join(
    f"<tr><td>{html.escape(k)}</td><td>{v if isinstance(v, str) else f'{v:.5g}'}</td></tr>"
    for k, v in final.items()
    if isinstance(v, int | float | str)
  )
  figures = "".join(_figures(steps, oracles)) if steps else "<p>No exam was taken yet.</p>"
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    f'<meta name="viewport" content="width=device-width"><title>{name}</title>'
    f"<style>{STYLE}</style><body><h1>{name}</h1><p>Weights are fixed while the model acts: all "
    "learning seen here is from its context. Lines are means over seeds and tasks, bands reach "
    f'from the least to the greatest seed.</p><div class="grid">{figures}</div>'
    f"<h2>At the end</h2><table>{rows}</table><h2>Config</h2>"
    f"<pre>{html.escape(json.dumps(config, indent=1))}</pre></body></html>"
  )


def _figures(steps: list[dict], oracles: dict):
  curves = {k: np.asarray(v) for k, v in steps[-1]["curves"].items()}
  if "online" in curves:
    lines = {"model": np.cumsum(curves["online"], axis=1)}
    known = oracles.get("online", {})
    lines |= {k: np.cumsum(np.asarray(v))[None] for k, v in known.items()}
    yield plot(lines, "cumulative regret against pulls, online")
    known = {k: np.asarray(v)[None] for k, v in oracles.get("offline", {}).items()}
    yield plot({"model": curves["offline"]} | known, "suboptimality against size of the data")
    yield plot({"model": curves["entropy"]}, "entropy of the model's choices, nats, against pulls")
    if "distance" in curves:
      lines = {
        f"step {s['step']}": np.asarray(s["curves"]["distance"])
        for s in _spread(steps, len(COLOURS))
      }
      yield plot(lines, "total variation to exact posterior sampling, against size of the data")
      yield _numbers(steps, "distance", "total variation, mean over data sizes, against steps")
  else:
    size = curves["return"].shape[1]
    lines = {"model": curves["return"]}
    if oracles["best"] is not None:
      lines["optimal"] = np.full((1, size), oracles["best"])
    lines |= {k: np.asarray(v)[None] for k, v in oracles.get("return", {}).items()}
    yield plot(lines, "return against episode in context, online", first=1)
    if "right" in curves:
      yield plot({"model": curves["right"]}, "share of actions that are the label", first=1)
  name = "regret" if "online" in curves else "return"
  yield _numbers(steps, name, f"{name} at the end, against training steps")


def _numbers(steps: list[dict], name: str, caption: str) -> str:
  values = np.asarray([s["numbers"][name] for s in steps]).T
  return plot({"model": values}, caption, at=[s["step"] for s in steps])


def _spread(items: list, count: int) -> list:
  picked = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
  return [items[i] for i in picked]


def plot(
  lines: dict[str, np.ndarray], caption: str, first: int = 0, at=None, w: int = 420, h: int = 240
) -> str:
  """A figure of lines [seeds, points] by name; at: places of the points, else first, ..."""
  top = max(0.0, *(float(np.max(v)) for v in lines.values()))
  low = min(0.0, *(float(np.min(v)) for v in lines.values()))
  top = top if top > low else 1.0
  count = max(v.shape[1] for v in lines.values())
  at = list(range(first, first + count)) if at is None else at
  span = max(at[-1] - at[0], 1)
  x = lambda i: 44 + (w - 56) * (at[i] - at[0]) / span
  y = lambda v: h - 24 - (h - 40) * (float(v) - low) / (top - low)
  out = []
  for share in (0, 0.25, 0.5, 0.75, 1):
    value = low + share * (top - low)
    level = y(value)
    out.append(f'<line x1="44" x2="{w - 12}" y1="{level:.1f}" y2="{level:.1f}" stroke="#ececea"/>')
    out.append(f'<text x="38" y="{level + 4:.1f}" text-anchor="end">{value:.3g}</text>')
  for i in (0, count - 1):
    out.append(f'<text x="{x(i):.1f}" y="{h - 6}" text-anchor="middle">{at[i]}</text>')
  for (name, values), colour in zip(lines.items(), COLOURS * 3, strict=False):
    points = lambda row: [f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(row)]
    if len(values) > 1:
      band = points(values.max(axis=0)) + points(values.min(axis=0))[::-1]
      out.append(f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.15"/>')
    out.append(
      f'<polyline points="{" ".join(points(values.mean(axis=0)))}" fill="none" stroke="{colour}" '
      f'stroke-width="2"><title>{html.escape(name)}</title></polyline>'
    )
  legend = " &nbsp; ".join(
    f'<b style="color:{colour}">{html.escape(name)}</b>'
    for name, colour in zip(lines, COLOURS * 3, strict=False)
  )
  svg = f'<svg viewBox="0 0 {w} {h}" width="100%" role="img">{"".join(out)}</svg>'
  return f"<figure>{svg}<figcaption>{html.escape(caption)}<br>{legend}</figcaption></figure>"


def _read(path: Path) -> dict:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
