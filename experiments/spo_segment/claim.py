"""SPO by segments (paper 16), chains and trees, against GRPO at equal sampled tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import first_protocol as study
from experiments.common.first_protocol import more
from experiments.spo_segment import exact
from grpo_jax import envs, methods
from grpo_jax.models import policy
from grpo_jax.rollout import plans
from grpo_jax.train.programs import fused

CLAIM = (
  "Advantages of segments, by Monte Carlo values at their borders (chain) or by branching (tree), "
  "follow the true change of value more closely than GRPO's, and at equal sampled tokens they "
  "teach answers of several steps faster."
)
NOTES = (
  "Four letters are written backwards, right or wrong as a whole: each of the 5 tokens can spoil "
  "it. A three-step computation, tried first, is learned by heart at this size and does not "
  "carry over to other prompts. Continuations of a prefix count as sampled tokens, equal prefixes "
  "once. 'follow' is the correlation over trained tokens of the advantage, before whitening, with "
  "the exact change of value, summed over all answers, of the start policy on two problems. "
  "9 continuations a cut, 4 x 4 x 4 trees of one token a depth, no KL. Chains take as many "
  "problems an update as make their tokens over a run GRPO's, found by a run of 4 problems, in "
  "which they sampled a third of them and were refuted too."
)
CURVES = (
  ("reverse", "accuracy"),
  ("reverse", "train:correct"),
  ("reverse", "train:sampled"),
  ("reverse", "more:follow"),
)
_PROBLEMS = 2
_known: dict = {}  # (seed, problem) -> exact values of the start, which all arms share


def get_config(variant: str = ""):
  spo = lambda prompts, group, **args: {
    "method": "spo_segment",
    "args": {"beta_kl": 0.0} | args,
    "plan": {"prompts": prompts, "group": group},
  }
  return study.config(
    "spo_segment",
    variant,
    plan={
      "updates": 160,
      "eval_every": 20,
      "heldout": 512,
      "eval_temperature": 1.0,
      "warm_steps": 600,
      "warm_until": 0.3,
    },
    worlds={"reverse": {"world": "sequence", "params": {"items": 4}}},
    arms={
      "grpo": {"method": "grpo", "plan": {"prompts": 20, "group": 8}},
      "chain_2": spo(13, 4, interval=2),
      "chain_1": spo(11, 3, interval=1),
      "tree": spo(4, 1, form="tree", branching=(4, 4, 4), segment_tokens=1),
    },
    lr=3e-4,
  )


def probe(cell):
  """How advantages follow the exact change of value, at the start."""
  world = envs.get(cell.spec["world"], **cell.spec["params"])
  method = methods.get(cell.spec["method"], **cell.spec["args"])
  config = fused.tiny_config(world.vocab)
  forward = policy.make_forward(config, chunk=0)
  group, play = max(cell.spec["plan"]["group"], 4), plans.of(method.plan).play
  problems = world.problems(0, jnp.arange(_PROBLEMS))
  repeats = 8

  @jax.jit
  def credited(params, seed):
    ids = jnp.repeat(jnp.arange(_PROBLEMS), repeats)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(13), seed), ids.size)
    game = plans.Game(world, config, params, world.problems(0, ids), ids, keys, group, ids.size)
    rollouts, batch, *_ = play(method.plan, game)
    batch = batch.replace(logp_old=forward(params, batch).logp)
    credit = method.credit((), rollouts, batch)
    adv = jnp.take_along_axis(credit.adv, batch.unit, axis=1)
    return batch.tokens, batch.mask, adv

  def measure(state, start, seed):
    tokens, mask, adv = (np.asarray(x) for x in credited(start, seed))
    rows = len(tokens) // _PROBLEMS
    x, y = [], []
    for n in range(_PROBLEMS):
      problem = jax.tree.map(lambda a, n=n: a[n], problems)
      if (seed, n) not in _known:
        _known[seed, n] = exact.values(world, config, start, problem)
      for row in range(n * rows, (n + 1) * rows):
        trained = np.flatnonzero(mask[row] > 0)
        if trained.size:
          gain = exact.gains(_known[seed, n], tokens[row], int(trained[-1]) + 1, world.vocab)
          x += adv[row, trained].tolist()
          y += gain[trained].tolist()
    return {"follow": np.corrcoef(x, y)[0, 1] if np.std(x) * np.std(y) > 0 else 0.0}

  return measure


def statements(d):
  area = lambda arm: d.area("reverse", arm)
  follow = lambda arm: d.final("reverse", arm, "more:follow")
  out = []
  for arm in ("chain_2", "tree"):
    out += [
      more(f"{arm}: advantages follow the value above GRPO's", follow(arm), follow("grpo"), 0.02),
      more(f"{arm}: accuracy over training above GRPO", area(arm), area("grpo"), margin=0.01),
    ]
  return out
