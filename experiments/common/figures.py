"""What the experiments on in-context learners share: command line, evidence, lines with bands."""

import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from experiments.common import first_protocol as statements
from experiments.common.cli import command
from grpo_jax.names import unknown
from grpo_jax.run import atomic


def main(
  argv: list[str],
  doc: str | None,
  parts: Collection[str],
  workdir: str,
  test: Callable[[list[str], Path], dict],
) -> int:
  """The exit code of `--parts=a,b --workdir=DIR`; test(parts, workdir) is what is printed last."""
  work = lambda argv: print("final: " + json.dumps(test(*parse(argv, parts, workdir))))
  return command(argv, doc, work)


def parse(argv: list[str], known: Collection[str], workdir: str) -> tuple[list[str], Path]:
  """(parts, workdir); all parts unless said otherwise. UserError for what is not understood."""
  parts, folder = list(known), Path(workdir)
  for flag in argv:
    name, _, value = flag.partition("=")
    if name == "--parts":
      parts = value.split(",")
    elif name == "--workdir":
      folder = Path(value)
    else:
      raise unknown("command line", name, ("--parts", "--workdir"))
  for part in parts:
    if part not in known:
      raise unknown("--parts", part, known)
  return parts, folder


def evidence(
  folder: Path, claim: str, said: list[statements.Statement], more: dict, weak: str | None = None
) -> str:
  """Writes verdict.json, `more` behind the statements, and says what was found; the verdict.

  Nothing said is nothing shown: inconclusive. So is what runs say that could not tell, for the
  reason `weak`.
  """
  verdict, found = statements.judge(said) if said else ("inconclusive", [])
  kept = {"claim": claim, "verdict": verdict, "rule": statements.RULE, "statements": found} | more
  if weak is not None:
    verdict = kept["verdict"] = "inconclusive"
    kept["inconclusive_because"] = weak
    print(f"inconclusive: {weak}")
  atomic.write_json(folder / "verdict.json", kept, indent=1, ensure_ascii=False)
  for f in found:
    print(f"{f['result']:>6}: {f['text']}: {f['x']:.3f} against {f['y']:.3f}, difference "
          f"[{f['low']:.3f}, {f['high']:.3f}]")  # fmt: skip
  print(f"evidence: {folder}")
  return verdict


def figure(wide: float, high: float):
  """An empty figure, in inches; None without matplotlib."""
  try:
    from matplotlib.figure import Figure
  except ImportError:
    return None
  return Figure(figsize=(wide, high), dpi=100, layout="constrained")


def band(axes, at, values: np.ndarray, label: str, colour: str) -> None:
  """A line through the means of values [seeds, points], from the least to the greatest shaded."""
  axes.plot(at, values.mean(axis=0), color=colour, label=label, lw=1.6)
  axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)


def finish(axes, title: str, bottom: float | None = 0) -> None:
  """Title and legend; bottom: least value shown, None for all."""
  axes.set_title(title, fontsize=9, loc="left")
  axes.set_ylim(bottom=bottom)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, fontsize=8)


def study(curves: dict, effect: dict, dial: str, path: Path) -> None:
  """A panel a setting and measure, an arm a line with the interval of its mean; the last panel is
  main minus baseline against the dial. Needs matplotlib."""
  count = len(curves) + 1
  wide = min(4, count)
  if (found := figure(3.4 * wide, 2.6 * -(-count // wide))) is None:
    return
  axes = list(np.atleast_1d(found.subplots(-(-count // wide), wide)).flat)
  for axis in axes[count:]:
    axis.axis("off")
  for (name, arms), axis in zip(curves.items(), axes, strict=False):
    for i, (arm, c) in enumerate(arms.items()):
      style = {"color": f"C{i % 10}", "marker": "." if len(c["steps"]) == 1 else ""}
      axis.plot(c["steps"], c["value"], label=arm, **style)
      if None not in (*c["low"], *c["high"]):
        axis.fill_between(c["steps"], c["low"], c["high"], color=style["color"], alpha=0.12, lw=0)
    finish(axis, name, None)
  last = axes[count - 1]
  shown = [s for s in effect if "low" in effect[s]]
  for i, s in enumerate(effect):
    e = effect[s]
    last.plot([i], [e["difference"]], "o", color="C0") if "difference" in e else None
    last.plot([i, i], [e["low"], e["high"]], "-", color="C0") if s in shown else None
  last.axhline(0, color="0.6", lw=0.8)
  last.set_xticks(range(len(effect)), list(effect), fontsize=8)
  last.set_title(f"effect against {dial}: main - baseline", fontsize=9, loc="left")
  last.spines[["top", "right"]].set_visible(False)
  found.savefig(path, dpi=70)
