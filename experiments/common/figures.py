"""What the experiments on in-context learners share: command line, evidence, lines with bands."""

import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from experiments.common import statements
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
