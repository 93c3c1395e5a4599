"""From runs to the published numbers: medians of medians, ratios, shares, and a table of them."""

import statistics
from collections.abc import Iterable, Sequence

FRAMEWORKS = ("grpo_jax", "trl", "tunix")
QUIET = 0.1  # of the machine: what other processes may use in a run that is published


def middle(runs: Sequence[dict], key: str, digits: int = 4) -> float:
  """The median of one number over the runs."""
  return round(statistics.median(r[key] for r in runs), digits)


def cell(runs: Sequence[dict]) -> dict | None:
  """One framework at one prompt length over its interleaved runs; None if no run succeeded."""
  if not runs:
    return None
  return {
    "runs": len(runs),
    "step_s": middle(runs, "step_s"),  # the median of the runs' medians
    "step_s_runs": [r["step_s"] for r in runs],
    "best_s": min(r["step_min_s"] for r in runs),
    "generate_s": middle(runs, "generate_s"),
    "update_s": middle(runs, "update_s"),
    "other_s": middle(runs, "other_s"),
    "cpu_s": middle(runs, "cpu_s"),
    "first_step_s": middle(runs, "first_step_s"),
    "to_10_steps_s": middle(runs, "to_10_steps_s"),
    "to_100_steps_s": middle(runs, "to_100_steps_s"),
    "peak_mb": max(r["peak_mb"] for r in runs),
    "neighbours": max(r["neighbours"] for r in runs),
  }


def ratio(peer: dict | None, ours: dict | None, key: str = "step_s") -> float | None:
  """How many times more of `key` the peer takes."""
  if peer is None or ours is None:
    return None
  return round(peer[key] / ours[key], 2)


def share(flops: float, seconds: float, bound_gflops: float) -> float:
  """The part of the matmul bound at which `flops` of necessary work were done."""
  return round(flops / (seconds * bound_gflops * 1e9), 3)


def quiet(cells: dict[str, dict[int, dict | None]]) -> bool:
  """Whether other processes left the machine alone in all runs."""
  found = [c for by_length in cells.values() for c in by_length.values() if c is not None]
  return all(c["neighbours"] <= QUIET for c in found)


def bound(matmuls: Iterable[dict]) -> float:
  """The fastest matmul seen in the whole run, GFLOP/s: noise only ever lowers it."""
  return max(max(m["large_gflops"], m["model_gflops"]) for m in matmuls)


def final(cells: dict[str, dict[int, dict | None]], shares: dict, decode: dict) -> dict:
  """The last line: ratios peer / ours on medians and on best steps, shares, memory."""
  out: dict = {"quiet": quiet(cells)}
  for peer in FRAMEWORKS[1:]:
    for length, theirs in cells.get(peer, {}).items():
      ours = cells.get("grpo_jax", {}).get(length)
      out[f"{peer}_{length}"] = ratio(theirs, ours)
      out[f"{peer}_{length}_best"] = ratio(theirs, ours, "best_s")
      out[f"{peer}_{length}_memory"] = ratio(theirs, ours, "peak_mb")
  out |= {k: decode.get(k) for k in ("decode_transformers", "decode_transformers_no_prompt")}
  out |= {f"matmul_share_{name}": value for name, value in shares.items()}
  for length, ours in cells.get("grpo_jax", {}).items():
    if ours is not None:
      out |= {
        f"step_s_{length}": ours["step_s"],
        f"peak_mb_{length}": ours["peak_mb"],
        f"first_step_s_{length}": ours["first_step_s"],
      }
  return out


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Columns padded to their widest entry, the first to the left and numbers to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    first, *rest = [(text, width) for text, width in zip(row, widths, strict=True)]
    lines.append(first[0].ljust(first[1]) + "".join("  " + t.rjust(w) for t, w in rest))
  return "\n".join(lines)


def steps(cells: dict[str, dict[int, dict | None]], shares: dict) -> str:
  head = "prompt  framework,step s,best,generate,update,CPU s,first step,peak MB,share,x ours"
  rows: list[list[str]] = [list(map(str, head.split(",")))]
  for length in sorted({n for found in cells.values() for n in found}):
    ours = cells.get("grpo_jax", {}).get(length)
    for name in FRAMEWORKS:
      c = cells.get(name, {}).get(length)
      if c is None:
        continue
      row: list[str] = [f"{length:>6}  {name}"]
      row += [f"{c[k]:.2f}" for k in ("step_s", "best_s", "generate_s", "update_s", "cpu_s")]
      row += [f"{c['first_step_s']:.1f}", f"{c['peak_mb']:.0f}"]
      row += [f"{shares[f'{name}_{length}']:.0%}", "-" if ours is None else f"{ratio(c, ours):.2f}"]
      rows.append(row)
  return aligned(rows)


def decodes(found: dict) -> str:
  rows = [["decode", "tokens/s", "best", "no prompt", "share", "peak MB"]]
  for name, c in found.items():
    speeds = (c[k] for k in ("tokens_per_s", "tokens_per_s_best", "decode_tokens_per_s"))
    rows.append([name, *(f"{x:.0f}" for x in speeds), f"{c['share']:.0%}", f"{c['peak_mb']:.0f}"])
  return aligned(rows)
