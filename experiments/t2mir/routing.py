"""Where a trained T2MIR sends its tokens, and what its task gate makes of held-out tasks.

Letters: S seeds, n tasks, M contexts of each, L tokens, E experts. Everything is of evaluation,
without noise on the gates.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

CONTEXTS = 32  # of every held-out task
SHOWN = 6  # of them in the matrix of similarities
_KEY = 30_000


# ---- measures ------------------------------------------------------------------------------------


def information(joint: np.ndarray) -> float:
  """Mutual information of the two axes of a joint distribution, in nats; it need not be normed."""
  p = joint / joint.sum()
  independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
  some = p > 0
  return float(np.sum(p[some] * np.log(p[some] / independent[some])))


def purity(joint: np.ndarray) -> float:
  """Share of the mass [classes, groups] that is of the main class of its group."""
  return float(joint.max(axis=0).sum() / joint.sum())


def nearest_centroid(q: np.ndarray, task: np.ndarray) -> float:
  """Share of the rows q [N, E] that lie nearest to the mean of the other rows of their own task.

  Tasks with a single row are left out, as rows and as centroids; nan where fewer than two remain.
  """
  ids, counts = np.unique(task, return_counts=True)
  ids = ids[counts > 1]
  if len(ids) < 2:
    return float("nan")
  own = task[:, None] == ids[None]
  q, own = q[own.any(axis=1)], own[own.any(axis=1)]
  total, count = own.T.astype(float) @ q, own.sum(axis=0)
  center = (total[None] - own[..., None] * q[:, None]) / (count[None] - own)[..., None]
  distance = ((q[:, None] - center) ** 2).sum(axis=2)
  return float(np.mean(distance.argmin(axis=1) == own.argmax(axis=1)))


def similarity(q: np.ndarray) -> np.ndarray:
  """Cosine of every two rows [N, E], after the mean row is taken off."""
  q = q - q.mean(axis=0, keepdims=True)
  q = q / np.maximum(np.linalg.norm(q, axis=1, keepdims=True), 1e-12)
  return q @ q.T


def spread(load: np.ndarray) -> float:
  """CV^2 of the weight that each expert gets: var (ddof 1) / mean^2."""
  return float(load.var(ddof=1) / load.mean() ** 2)


def marks(routes: dict[str, np.ndarray], part: np.ndarray, task: np.ndarray, told: np.ndarray):
  """Numbers and matrices of one model.

  routes: of `models/moe/layer.py: Seen`, rows are contexts. part i32[L]: kind of a token, negative
  ones are left out. task i32[N] of a context; told bool[N]: whether its goal can be read from it.
  """
  out: dict = {}
  inside = part >= 0
  for gate in ("token", "task"):
    if f"{gate}_gate" not in routes or routes[f"{gate}_gate"].shape[2] == 1:  # the dense layer
      continue
    weight = routes[f"{gate}_gate"][:, inside]
    joint = np.stack([weight[:, part[inside] == m].sum(axis=(0, 1)) for m in range(3)])
    out[f"{gate}_modality"] = information(joint)
    out[f"{gate}_purity"] = purity(joint)
    out[f"{gate}_cv2"] = spread(joint.sum(axis=0))
    out[f"{gate}_by_modality"] = (joint / joint.sum(axis=1, keepdims=True)).tolist()
  if "q" in routes:
    q = routes["q"]
    table = np.zeros((task.max() + 1, q.shape[1]))
    np.add.at(table, (task[told], q[told].argmax(axis=1)), 1)
    out["q_task"] = information(table)
    out["q_nearest"] = nearest_centroid(q[told], task[told])
    out["q_nearest_all"] = nearest_centroid(q, task)
    rows = [np.flatnonzero(told & (task == t))[:SHOWN] for t in range(task.max() + 1)]
    out["q_similarity"] = np.round(similarity(q[np.concatenate(rows)]), 3).tolist()
  return out


# ---- models --------------------------------------------------------------------------------------


def sizes(params, moe) -> dict[str, int]:
  """Parameters of one model; `active`: those that one token meets in evaluation, that is without
  idle experts, noise, the key gate and the matrix of the contrastive loss."""
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  layers = [layer["moe"] for layer in params["layers"].values() if "moe" in layer]
  halves = [half for layer in layers for half in layer.values()]
  idle = count(params.get("key_gate", {}))
  for half in halves:
    number = half["experts"]["up"].shape[0]
    idle += count(half["experts"]) * (number - moe.top_k) // number
    idle += count([half.get("noise", ()), half.get("contrast", ())])
  total = count(params)
  return {"parameters": total, "active": total - idle}


def watch(layout, config, params, source=None) -> dict:
  """What `marks` reads: routes of CONTEXTS contexts of every held-out task, by the goal's angle
  about the middle of the goals, so that neighbours in the order are neighbours."""
  from grpo_jax.models.in_context import transformer as model
  from grpo_jax.train.programs.in_context_data import contexts

  family = layout.family
  away = family.heldout.goal - family.heldout.goal.mean(axis=0, keepdims=True)
  order = np.argsort(np.arctan2(away[:, 1], away[:, 0]))
  many = lambda x: jnp.repeat(jnp.asarray(x)[order], CONTEXTS, axis=0)
  tasks = jax.tree.map(many, family.heldout)
  count = jax.tree.leaves(tasks)[0].shape[0]
  what, where = jax.random.split(jax.random.key(_KEY))
  data = contexts(family, tasks, jax.random.split(what, count), layout.steps, source)
  states = jax.vmap(family.query)(tasks, jax.random.split(where, count))
  x = jax.vmap(layout.encode)(jax.vmap(family.observe)(states), data)
  routes = model.apply(config, params, x, position=jnp.asarray(layout.position)).routes
  keep = ("token_gate", "task_gate", "q")
  return {k: routes[k][0] for k in keep if k in routes} | {
    "told": jnp.any(data.reward != 0, axis=1)
  }


def measure(c, workdir: Path) -> dict:
  """routing.json of a finished run, made if it is not there: sizes, the return of standing still
  in the middle, and marks of every seed, {"before": [S], "after": [S]} training."""
  path = workdir / "routing.json"
  if path.exists():
    return json.loads(path.read_text())
  from grpo_jax.run import atomic
  from grpo_jax.run.checkpoint import Checkpoints
  from grpo_jax.train import in_context as in_context_loop
  from grpo_jax.train.programs import in_context
  from grpo_jax.train.programs.seeds import over_seeds

  layout, method, config, plan = in_context_loop.parts_of(c)
  layout, _, source = in_context_loop.sources(c, layout)
  program = in_context.make_program(layout, method, config, plan)
  seeds = c.seed + jnp.arange(c.seeds, dtype=jnp.int32)
  state = over_seeds(lambda seed, _: program.init(seed))(seeds, seeds)
  look = over_seeds(lambda _, params: watch(layout, config, params, source))
  stages = {"before": jax.tree.map(np.asarray, look(seeds, state.params))}
  found: dict = {"sizes": sizes(jax.tree.map(lambda x: x[0], state.params), config.moe)}
  far = np.linalg.norm(layout.family.heldout.goal, axis=1)
  found["still"] = float(-layout.family.horizon * far.mean())
  saves = Checkpoints(workdir, c.checkpoint.keep)
  restored = saves.restore(state)
  saves.close()
  assert restored is not None
  stages["after"] = jax.tree.map(np.asarray, look(seeds, restored[1].params))
  part = np.where(np.arange(layout.length) < layout.lead, -1, layout.part)
  for stage, seen in stages.items():
    told = seen.pop("told")
    task = np.arange(told.shape[1]) // CONTEXTS
    found[stage] = [
      marks({k: v[s] for k, v in seen.items()}, part, task, told[s]) for s in range(c.seeds)
    ]
  atomic.write_json(path, found)
  return found
