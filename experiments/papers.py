"""The papers, and what stands in this repository for each.

  python -m experiments.papers [--json] [--write]

"Paper NN" anywhere in the repository is row NN of papers.tsv. One row a paper: slug, what
implements it, config, evidence, verdict. Rows come from the tree, by the slug with underscores for
hyphens and dots: the code is grpo_jax/*/SLUG.py, grpo_jax/*/SLUG/ or pallas_kernels/SLUG/, or what
the fourth column of papers.tsv names; a config is configs/SLUG.py, experiments/SLUG/claim.py or an
arm of configs/arena.py; evidence is experiments/SLUG/verdict.json, of the second protocol, and
experiments/SLUG/real.json beside it. --write makes docs/papers.md and the table of README.md anew.
"""

import ast
import csv
import json
import sys
from pathlib import Path

from experiments.common.verdict import PROTOCOL, WORDS

ROOT = Path(__file__).parents[1]
FLAGS = ("--json", "--write")


def entries() -> list[dict[str, str]]:
  """{"nr", "slug", "title", "home"} of all papers, in the order of their numbers; home: where the
  code is, if not where the slug says."""
  with (ROOT / "experiments" / "papers.tsv").open(encoding="utf-8") as lines:
    rows = sorted(csv.DictReader(lines, delimiter="\t"), key=lambda r: int(r["nr"]))
  return [r | {"home": r["home"] or ""} for r in rows]


def papers() -> list[tuple[str, str]]:
  """(slug, title) of all papers."""
  return [(r["slug"], r["title"]) for r in entries()]


def name_of(slug: str) -> str:
  return slug.replace("-", "_").replace(".", "_")


def home(name: str) -> str | None:
  """The file or folder of this name in a room of grpo_jax or the kernels. ValueError if two have
  one."""
  folder = f"{name}/__init__.py"
  tried = (f"grpo_jax/*/{name}.py", f"grpo_jax/*/{folder}", f"pallas_kernels/{folder}")
  found = [p for pattern in tried for p in ROOT.glob(pattern)]
  found = sorted(p.parent if p.name == "__init__.py" else p for p in found)
  if len(found) > 1:
    raise ValueError(f"{name}: both {found[0]} and {found[1]}; a paper has one home")
  return found[0].relative_to(ROOT).as_posix() if found else None


def row(paper: dict[str, str], arms: dict) -> dict:
  """Raises ValueError for an evidence file whose verdict is none of WORDS."""
  name = name_of(paper["slug"])
  code = paper["home"] if paper["home"] and (ROOT / paper["home"]).exists() else home(name)
  tried = [f"configs/{name}.py", f"experiments/{name}/claim.py"]
  config = next((path for path in tried if (ROOT / path).exists()), None)
  if config is None and any(a["method"] == name for a in arms.values()):
    config = "configs/arena.py"
  evidence = f"experiments/{name}/verdict.json"
  found, note = read(evidence), None
  if found and found.get("protocol") != PROTOCOL:
    found, note = {}, "old protocol"
  verdict = found.get("verdict", "not run" if code else "not built")
  if verdict not in WORDS:
    raise ValueError(f"{evidence}: verdict {verdict!r} is none of {', '.join(WORDS)}")
  return {
    "nr": paper["nr"],
    "slug": paper["slug"],
    "title": paper["title"],
    "code": code,
    "config": config if code else None,
    "evidence": evidence if found else None,
    "verdict": verdict,
    "settings": found.get("settings", {}),
    "note": note,
    "changes": changes(name),
    "real": read(f"experiments/{name}/real.json") or None,
  }


def read(path: str) -> dict:
  """The JSON file of the repository; {} if there is none."""
  file = ROOT / path
  return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def changes(name: str) -> list[str]:
  """CHANGES of the paper's claim.py, read without running it; none where it has none."""
  file = ROOT / f"experiments/{name}/claim.py"
  body = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
  for line in body:
    if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "CHANGES":
      return list(ast.literal_eval(line.value))
  return []


def rows() -> list[dict]:
  from configs import arena

  arms = arena.get_config().to_dict()["arms"]
  return [row(paper, arms) for paper in entries()]


def main(argv: list[str]) -> int:
  if {"-h", "--help"} & set(argv):
    print((__doc__ or "").strip())
    return 0
  if wrong := [a for a in argv if a not in FLAGS]:
    print(f"error: unknown argument {wrong[0]!r}; there are {', '.join(FLAGS)}", file=sys.stderr)
    return 2
  table = rows()
  if "--write" in argv:
    from experiments.common import papers_page

    papers_page.write(table)
  if "--json" in argv:
    print(json.dumps(table, indent=1))
    return 0
  show(table)
  return 0


def show(table: list[dict]) -> None:
  """A line a paper, then how many have which verdict."""
  fields = ("slug", "code", "config", "evidence", "verdict")
  note = lambda r: f" ({r['note']})" if r["note"] else ""
  settings = lambda r: "".join(f"; {k}: {v}" for k, v in r["settings"].items())
  lines = [r | {"verdict": r["verdict"] + note(r) + settings(r)} for r in table]
  text = [[r[f] or "–" for f in fields] for r in lines]
  width = [max(map(len, column)) for column in zip(fields, *text, strict=True)]
  for line in (fields, *text):
    print("  ".join(x.ljust(w) for x, w in zip(line, width, strict=True)).rstrip())
  counts = {v: sum(r["verdict"] == v for r in table) for v in WORDS}
  print(f"{len(table)} papers: " + ", ".join(f"{n} {v}" for v, n in counts.items() if n))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
