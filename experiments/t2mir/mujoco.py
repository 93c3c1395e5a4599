"""T2MIR-AD against Algorithm Distillation on MuJoCo's Cheetah-Vel, held-out target velocities.

  python -m experiments.t2mir.mujoco [--parts=full,dense] [--workdir=runs/t2mir_mujoco]

Histories of soft actor-critic are made once, in WORKDIR/histories; each part is one arm, a run of
configs/t2mir.py:cheetah_vel in WORKDIR/ARM. The same command resumes. With both arms the evidence
goes to experiments/t2mir/cheetah_vel/, with one to WORKDIR. Needs the extra `mujoco`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from experiments import histories
from experiments.common import figures as in_context
from experiments.common.first_protocol import Statement, more

HERE = Path(__file__).parent
ARMS = ("full", "dense")
FAMILY = "cheetah_vel"
CLAIM = (
  "On Cheetah-Vel, from learning histories of soft actor-critic, T2MIR-AD improves within its "
  "context on target velocities it has not seen, and more so than with one dense layer of as many "
  "active parameters (Algorithm Distillation)."
)
NOTES = (
  "Small setting. 20 training and 5 held-out targets instead of 45 and 5; episodes of 50 steps "
  "instead of 200; contexts of 4 episodes, as in the paper; a transformer of width 32 instead of "
  "256, trained for 500 steps of 8 contexts instead of 100,000 of 24; learners with two layers "
  "of 64 units, one a task, with one update a step, 30,000 steps. A score of 0 is the return of "
  "uniform actions on the held-out targets, 1 that of the learners on the same targets in the "
  "last tenth of their lives. Tasks and learners hang on one seed, so the intervals speak of the "
  "transformer's seeds alone. The settings of the learners (discount, slow copy, scale of "
  "rewards, width) were chosen among four by the returns of learners on eight targets, some of "
  "them among those here, before any transformer was trained. The size of the transformer is "
  "that of the other T2MIR configs; batch, steps and seeds are what half an hour of one shared "
  "core allows, set from the time of a step before anything was trained. Seconds are of that core, "
  "waits for others included. With two seeds and so few steps nothing here speaks of the paper's "
  "sizes."
)
MARGIN = 0.05  # of the score
_EPISODES = 20  # of uniform actions, on every held-out target


def statements(scores: dict[str, np.ndarray]) -> list[Statement]:
  """scores f64[S, E] by arm."""
  full = scores["full"]
  return [
    more("score: T2MIR-AD's last episode > its first", full[:, -1], full[:, 0], MARGIN),
    more("score: T2MIR-AD's last episode > uniform actions", full[:, -1], 0.0, MARGIN),
    more(
      "score, mean over episodes: T2MIR-AD > one dense layer",
      full.mean(axis=1),
      scores["dense"].mean(axis=1),
      MARGIN,
    ),
  ]


def test(arms: list[str], workdir: Path) -> dict:
  from configs import t2mir
  from grpo_jax.train import launch

  start = time.monotonic()
  known = histories.once(t2mir.get_config(FAMILY), workdir)
  low, high = uniform(), known["returns"]["heldout"][-1]
  finals, returns, scores = {}, {}, {}
  for arm in arms:
    c = t2mir.get_config(f"{FAMILY},{arm}")
    c.data.histories.path = known["path"]
    finals[arm] = launch.launch(c, workdir / arm)
    last = max((workdir / arm / "exam").glob("step_*.json"))
    returns[arm] = np.asarray(json.loads(last.read_text())["curves"]["return"])
    scores[arm] = (returns[arm] - low) / (high - low)
  more_of = {
    "return_by_episode": {a: r.mean(axis=0).round(2).tolist() for a, r in returns.items()},
    "return_by_episode_and_seed": {a: r.round(2).tolist() for a, r in returns.items()},
    "score_by_episode": {a: s.mean(axis=0).round(3).tolist() for a, s in scores.items()},
    "uniform_actions": round(low, 2),
    "learners_by_tenths": known["returns"],
    "histories_s": known["wall_s"],
    "numbers": finals,
    "command": "python -m experiments.t2mir.mujoco",
    "seeds": c.seeds,
    "notes": NOTES,
  }
  whole = set(arms) == set(ARMS)
  folder = HERE / FAMILY if whole else workdir
  folder.mkdir(parents=True, exist_ok=True)
  verdict = in_context.evidence(folder, CLAIM, statements(scores) if whole else [], more_of)
  return {"verdict": verdict, "wall_s": round(time.monotonic() - start, 1)}


def uniform() -> float:
  """Mean return of uniform actions on the held-out targets."""
  import jax

  from configs import t2mir
  from grpo_jax.envs import contextual
  from grpo_jax.train import in_context as in_context_loop

  name, params = in_context_loop.family_of(t2mir.get_config(FAMILY))
  family = contextual.get(name, **params)
  count = jax.tree.leaves(family.heldout)[0].shape[0]
  steps = _EPISODES * family.horizon
  play = jax.jit(jax.vmap(lambda task, key: family.behave(task, key, steps).reward))
  reward = play(family.heldout, jax.random.split(jax.random.key(0), count))
  return float(np.sum(np.asarray(reward, np.float64)) / (count * _EPISODES))


if __name__ == "__main__":
  sys.exit(in_context.main(sys.argv[1:], __doc__, ARMS, "runs/t2mir_mujoco", test))
