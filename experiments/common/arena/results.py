"""From cell files to results.json: what a report shows and a table quotes."""

import numpy as np

from experiments.common.arena import stats


def final(cell: dict) -> np.ndarray:
  """The world's held-out measure at the end, one a seed."""
  return np.asarray([r[cell["spec"]["measure"]][-1] for r in cell["runs"]])


def summarize(c, found: dict) -> dict:
  """`found`: (world, arm) -> {"lr", "runs", "tuning", "spec"}; only whole cells."""
  worlds = [w for w in c.worlds if any(k[0] == w for k in found)]
  arms = [a for a in c.arms if any(k[1] == a for k in found)]
  out = {"baseline": c.baseline, "seeds": c.seeds, "worlds": {}, "arms": {}}
  for world in worlds:
    out["worlds"][world] = _world(c, world, arms, found)
  for arm in arms:
    own = [w for w in worlds if (w, arm) in found]
    mine = np.stack([final(found[w, arm]) for w in own], axis=1)
    row = {"worlds": own, "iqm": stats.bootstrap(stats.iqm, mine)._asdict()}
    shared = [w for w in own if (w, c.baseline) in found]
    if arm != c.baseline and shared:
      x, y = (np.stack([final(found[w, a]) for w in shared], 1) for a in (arm, c.baseline))
      row["better"] = stats.bootstrap(stats.probability_of_improvement, x, y)._asdict()
      row["better_worlds"] = shared
    out["arms"][arm] = row
  everywhere = [a for a in arms if out["arms"][a]["worlds"] == worlds]
  out["ranks"] = _ranks(found, worlds, everywhere)
  return out


def _world(c, world: str, arms: list[str], found: dict) -> dict:
  out = {"spec": None, "arms": {}}
  for arm in arms:
    if (world, arm) not in found:
      continue
    cell = found[world, arm]
    runs = cell["runs"]
    out["spec"] = {k: cell["spec"][k] for k in ("world", "params", "plan", "measure")}
    every = cell["spec"]["plan"]["eval_every"]
    measure = np.asarray([r[cell["spec"]["measure"]] for r in runs])
    out["arms"][arm] = {
      "lr": cell["lr"],
      "method": cell["spec"]["method"],
      "args": cell["spec"]["args"],
      "final": stats.bootstrap(stats.iqm, measure[:, -1:])._asdict(),
      "start": stats.iqm(measure[:, :1]),
      "steps": [i * every for i in range(measure.shape[1])],
      "curve": stats.curve(measure),
      "each": measure[:, -1].tolist(),
      "train_every": runs[0]["train_every"],
      "train": {
        k: np.mean([r["train"][k] for r in runs], axis=0).tolist() for k in runs[0]["train"]
      },
      "tuning": cell["tuning"],
      "stuck": int(np.sum(measure[:, -1] <= measure[:, 0])),
    }
  return out


def _ranks(found: dict, worlds: list[str], arms: list[str], repeats: int = 2000) -> dict:
  """Expected share of ranks of each arm over worlds, ties shared, seeds bootstrapped."""
  if not worlds or not arms:
    return {}
  rng = np.random.default_rng(0)
  scores = [np.stack([final(found[w, a]) for a in arms]) for w in worlds]  # [arms, seeds]
  share = np.zeros((len(arms), len(arms)))
  for _ in range(repeats):
    for s in scores:
      drawn = s[np.arange(len(arms))[:, None], rng.integers(0, s.shape[1], s.shape)].mean(axis=1)
      order = np.argsort(-drawn + 1e-9 * rng.random(len(arms)))
      share[order, np.arange(len(arms))] += 1
  share /= repeats * len(scores)
  return {arm: row.tolist() for arm, row in zip(arms, share, strict=True)}


def table(results: dict) -> str:
  """Markdown for a terminal and a README."""
  head = ["arm", *results["worlds"], "IQM", f"P(better than {results['baseline']})"]
  rows = [head, ["---"] * len(head)]
  show = lambda e: f"{e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}]"
  ordered = sorted(results["arms"], key=lambda a: -results["arms"][a]["iqm"]["value"])
  for arm in ordered:
    row = results["arms"][arm]
    cells = [
      f"{w['arms'][arm]['final']['value']:.2f}" if arm in w["arms"] else "–"
      for w in results["worlds"].values()
    ]
    better = show(row["better"]) if "better" in row else "–"
    rows.append([arm, *cells, show(row["iqm"]), better])
  return "\n".join("| " + " | ".join(r) + " |" for r in rows)
