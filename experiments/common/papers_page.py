"""docs/papers.md and the table of README.md, from the rows of experiments/papers.py."""

from experiments import papers
from experiments.common.evidence import scale_words
from grpo_jax.run import atomic

BEGIN, END = "<!-- papers -->", "<!-- /papers -->"
HEAD = """# The papers

A row a paper: what it changes of policy optimization, what its study found, and the method on a
language model beside it. A verdict is by rule ([how](add_a_study.md)) and holds at the scale that
stands with it: `reproduced` is the paper's claim in this world, not the paper. Numbers are main arm
minus baseline with the interval of the paired difference. The real model never decides.

| verdict | when |
|---|---|
| reproduced | gates and all claims hold, at every setting that can tell |
| in part | so at some settings, or of some claims, and none is against |
| no effect here | the first claim's effect is within the margin, and more would have been seen |
| against | a claim's opposite was seen |
| undecided | too few seeds or too much noise |
| world cannot tell | a gate fails: no room, no disease, nothing learned |
| not run, not built | no evidence of this protocol; no code |

This page is made by `python -m experiments.papers --write`.
"""
COLUMNS = (
  "paper",
  "changes",
  "verdict",
  "by setting",
  "scale",
  "curve",
  "real model",
  "not tested",
)
_NONE = "–"


def write(table: list[dict]) -> None:
  atomic.write(papers.ROOT / "docs/papers.md", page(table))
  readme = papers.ROOT / "README.md"
  atomic.write(readme, with_table(readme.read_text(encoding="utf-8"), table))


def page(table: list[dict]) -> str:
  """docs/papers.md."""
  built = [r for r in table if r["code"]]
  rest = [r for r in table if not r["code"]]
  text = [HEAD, f"## Built, {len(built)}", "", *_table(COLUMNS, [_cells(r) for r in built])]
  text += ["", f"## Not built, {len(rest)}", ""]
  names = [[f"{r['nr']} {r['slug']}", r["title"], r["verdict"]] for r in rest]
  return "\n".join([*text, *_table(("paper", "title", "verdict"), names)]) + "\n"


def with_table(readme: str, table: list[dict]) -> str:
  """README.md with the table between its two markers. ValueError without them."""
  if readme.count(BEGIN) != 1 or readme.count(END) != 1:
    raise ValueError(f"README.md: needs {BEGIN} and {END} once each")
  before, after = readme.split(BEGIN)[0], readme.split(END)[1]
  built = [r for r in table if r["code"]]
  lines = [
    [f"[{r['nr']} {r['slug']}]({r['code']})", _changes(r), _verdict(r), _short(r["real"])]
    for r in built
  ]
  head = ("paper", "changes", "verdict", "SmolLM2-135M")
  body = "\n".join(_table(head, lines))
  said = f"{len(built)} of {len(table)} papers are built; [all of them](docs/papers.md)."
  return f"{before}{BEGIN}\n{body}\n\n{said}\n{END}{after}"


def _table(head, lines: list[list[str]]) -> list[str]:
  row = lambda cells: "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
  return [row(head), "|" + "---|" * len(head), *(row(line) for line in lines)]


def _cells(r: dict) -> list[str]:
  name = papers.name_of(r["slug"])
  found = papers.read(r["evidence"]) if r["evidence"] else {}
  study = papers.ROOT / f"experiments/{name}/claim.py"
  address = study.relative_to(papers.ROOT).as_posix() if study.is_file() else r["code"]
  paper = f"[{r['nr']} {r['slug']}](../{address}): {r['title']} ([code](../{r['code']}))"
  picture = f"experiments/{name}/curves.png"
  shown = found and (papers.ROOT / picture).is_file()
  return [
    paper,
    _changes(r),
    _verdict(r),
    _settings(found) or _NONE,
    scale_words(found["scale"]) if found else _NONE,
    f"[curves](../{picture})" if shown else _NONE,
    _real(r["real"]),
    found.get("untested") or _NONE,
  ]


def _changes(r: dict) -> str:
  return ", ".join(r["changes"]) or _NONE


def _verdict(r: dict) -> str:
  found = papers.read(r["evidence"]) if r["evidence"] else {}
  where = f" ({', '.join(found['where'])})" if r["verdict"] == "in part" and found["where"] else ""
  owed = "; the longer attempt is owed" if found.get("owed") else ""
  note = f" ({r['note']})" if r["note"] else ""
  return f"{r['verdict']}{where}{note}{owed}"


def _settings(found: dict) -> str:
  lines = []
  for setting, word in found.get("settings", {}).items():
    e = found["effect"].get(setting, {})
    each = (e.get(k) for k in ("difference", "low", "high"))
    size = f" {_triple(each)}" if {"difference", "low", "high"} <= e.keys() else ""
    lines.append(f"{found['dial']} {setting}: {word}{size}")
  return "<br>".join(lines)


def _triple(each) -> str:
  middle, low, high = each
  return f"{middle:+.3f} [{low:.3f}, {high:.3f}]"


def _short(real: dict | None) -> str:
  """What changed on the real model, in a few words."""
  if real is None:
    return "not run"
  if "before" not in real or "after" not in real:
    return real["what"]
  gain = f", {_triple(real['gain'])}" if len(real.get("gain", ())) == 3 else ""
  return f"{_number(real['before'])} → {_number(real['after'])}{gain}"


def _real(real: dict | None) -> str:
  if real is None:
    return "not run"
  text = [real["what"]]
  if "before" in real and "after" in real:
    text.append(_short(real))
  else:
    text += [f"{k} {_number(v)}" for k, v in real.get("numbers", {}).items()]
  cost = [f"{real[k]:,} {k}" for k in ("tokens", "minutes", "seeds") if real.get(k)]
  return "; ".join([*text, ", ".join(cost)] if cost else text)


def _number(x) -> str:
  """A number, or [mean, low, high], or {name: one of these}."""
  if isinstance(x, dict):
    return ", ".join(f"{k} {_number(v)}" for k, v in x.items())
  if isinstance(x, list) and len(x) == 3:
    return f"{_number(x[0])} [{_number(x[1])}, {_number(x[2])}]"
  if isinstance(x, list):
    return " → ".join(map(_number, x))
  return f"{x:.3g}" if isinstance(x, int | float) and not isinstance(x, bool) else str(x)
