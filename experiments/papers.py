"""The papers, and what stands in this repository for each.

  python -m experiments.papers [--json]

"Paper NN" anywhere in the repository is row NN of papers.tsv. One row a paper: slug, what
implements it, config, evidence, verdict. Rows come from the tree: a method is
grpo_jax/methods/SLUG.py; a config is configs/SLUG.py, experiments/SLUG/claim.py or an arm of
configs/arena.py; evidence is experiments/SLUG/verdict.json with the field `verdict`. Slugs have
underscores for hyphens and dots.
"""

import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERDICTS = ("confirmed", "refuted", "inconclusive", "not run", "not built")
# What is not a method of its own.
ELSEWHERE = {
  "prefix-grouper": "pallas_kernels/prefix_attention",
  "evolve-bandits": "grpo_jax/systems/evolve_bandits",
}


def papers() -> list[tuple[str, str]]:
  """(slug, title) of all papers, in the order of their numbers."""
  with (ROOT / "experiments" / "papers.tsv").open(encoding="utf-8") as lines:
    rows = sorted(csv.DictReader(lines, delimiter="\t"), key=lambda r: int(r["nr"]))
  return [(r["slug"], r["title"]) for r in rows]


def row(slug: str, title: str, arms: dict) -> dict:
  """Raises ValueError for an evidence file whose verdict is none of VERDICTS."""
  name = slug.replace("-", "_").replace(".", "_")
  code = ELSEWHERE.get(slug, f"grpo_jax/methods/{name}.py")
  built = (ROOT / code).exists()
  in_arena = any(a["method"] == name for a in arms.values())
  tried = [f"configs/{name}.py", f"experiments/{name}/claim.py"]
  config = next((path for path in tried if (ROOT / path).exists()), None)
  if config is None and in_arena:
    config = "configs/arena.py"
  evidence = f"experiments/{name}/verdict.json"
  verdict = "not run" if built else "not built"
  if (ROOT / evidence).exists():
    verdict = json.loads((ROOT / evidence).read_text(encoding="utf-8"))["verdict"]
    if verdict not in VERDICTS:
      raise ValueError(f"{evidence}: verdict {verdict!r} is none of {', '.join(VERDICTS)}")
  else:
    evidence = None
  return {
    "slug": slug,
    "title": title,
    "code": code if built else None,
    "config": config if built else None,
    "evidence": evidence,
    "verdict": verdict,
  }


def rows() -> list[dict]:
  from configs import arena

  arms = arena.get_config().to_dict()["arms"]
  return [row(slug, title, arms) for slug, title in papers()]


def main(argv: list[str]) -> int:
  if {"-h", "--help"} & set(argv):
    print((__doc__ or "").strip())
    return 0
  if wrong := [a for a in argv if a != "--json"]:
    print(f"error: unknown argument {wrong[0]!r}; there is only --json", file=sys.stderr)
    return 2
  table = rows()
  if "--json" in argv:
    print(json.dumps(table, indent=1))
    return 0
  fields = ("slug", "code", "config", "evidence", "verdict")
  text = [[r[f] or "–" for f in fields] for r in table]
  width = [max(map(len, column)) for column in zip(fields, *text, strict=True)]
  for line in (fields, *text):
    print("  ".join(x.ljust(w) for x, w in zip(line, width, strict=True)).rstrip())
  counts = {v: sum(r["verdict"] == v for r in table) for v in VERDICTS}
  print(f"{len(table)} papers: " + ", ".join(f"{n} {v}" for v, n in counts.items() if n))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
