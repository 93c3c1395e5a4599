"""Prefix Grouper (paper 59): a prompt computed once a group, against once a completion.

The dial is the prompt's length over the completions'. What is measured is exact but for rounding,
so errors are counted in units of 2^-24 against the repeated form in float64 (exact.py), and the
tolerance is the repeated form's own error in float32.
"""

import functools
import statistics as middle
import threading
import time
from typing import Any

import jax
import numpy as np

from experiments.bench import work
from experiments.common import gates, study
from experiments.common.statements import claim, side
from experiments.prefix_grouper import exact
from grpo_jax import methods
from grpo_jax.models import decoder, policy
from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout import pack
from grpo_jax.types import Batch, Rollouts

CLAIM = (
  "A group's prompt computed once gives the same outputs, log-probabilities and gradients as one "
  "copy of it for every completion, on every implementation, and costs less the longer the prompt."
)
NOTES = (
  "Two prompts of different lengths, 8 completions of different lengths each, GRPO's loss, random "
  "weights with embeddings of size 0.5, so that next tokens are told apart. Both forms go through "
  "the same forward pass, the repeated one in groups of one. Errors: |x - exact| / |exact|, over "
  "all of a batch or of the parameters, in units of 2^-24, exact the repeated form in float64 by "
  "another decoder. Tolerance: the repeated form's own error by the same implementation; the "
  "shared form may have twice that, as two roundings of one number differ by up to their sum. "
  "'cost' is the compiler's count of FLOPs of a gradient step over that of the repeated form; of "
  "the ideal it is the ratio of the formulas (visible pairs only). 'exact' is the float64 result "
  "rounded once. TPU and GPU kernels run interpreted."
)
UNTESTED = (
  "memory; larger groups under the same budget; final performance of a policy trained with it "
  "(it follows from equal gradients); real models; kernels compiled for a device, bfloat16"
)
CHANGES = ("other",)
HISTORY = ()
FORMS = {  # implementation of attention, whether a row holds all completions of its prompt
  "reference": ("reference", False),
  "xla": ("xla", False),
  "packed": ("xla", True),
  "tpu": ("tpu_interpret", False),
  "gpu": ("gpu_interpret", False),
}
SLOW = ("tpu", "gpu")  # interpreted: large programs on small arrays
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
KINDS = ("logp", "entropy", "gradient")
MEASURES = ("cost", "formula", "seconds", "tokens", "redundant")
MEASURES += tuple(f"{kind}:{form}" for kind in KINDS for form in FORMS)
CURVES = ("cost", *(f"{kind}:xla" for kind in KINDS))
SHAPE = work.Shape(hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=256, vocab=256)
CONFIG = ModelConfig(SHAPE.vocab, SHAPE.hidden, SHAPE.ffn, SHAPE.layers, 4, 2, 32)
SCALE = {
  "parameters": SHAPE.layers * (SHAPE.layer_params + 256) + 128 + 2 * 256 * 128,
  "tokens": 512,
}
ROUNDING = 2.0**-24
_ONE_AT_A_TIME = threading.Lock()  # two runs that go at once would compile the same twice


def get_config(variant: str = ""):
  of = lambda prompt: {"plan": {"prompt": prompt}}
  given = lambda role: study.arm(role, fixed="both forms are given the same weights and batch")
  return study.config(
    "prefix_grouper",
    variant,
    plan={"prompts": 2, "group": 8, "prompt": 256, "new": 32, "timed": 3},
    dial=("prompt over completion", {"quarter": of(8), "two": of(64), "eight": of(256)}),
    arms={
      "repeated": given("baseline"),
      "shared": given("main"),
      "exact": given("oracle"),
    },
    score="cost",
    at="final",
    less=True,
    ranges={"cost": 1.0},
    seeds=10,
    length="timed",
    debug={"prompt": 16, "new": 4, "timed": 1},
  )


def measure(world, arm, plan, seed):
  size = {k: plan[k] for k in ("prompts", "group", "prompt", "new")}
  begun = time.perf_counter()
  problem = _problem(tuple(size.values()), seed)
  truth, params = _truth(tuple(size.values()), seed), _params(seed)
  formula = work.forward(SHAPE, **size) / work.repeated(SHAPE, **size)
  copies = (plan["group"] - 1) * plan["prompt"]
  out = {
    "formula": formula,
    "tokens": float(problem[1].mask.sum()),
    "redundant": copies / (plan["group"] * (plan["prompt"] + plan["new"] - 1)),
  }
  if arm["name"] == "exact":
    once = jax.tree.map(lambda x: x.astype(np.float32).astype(np.float64), truth)
    errors = {f"{k}:{form}": _error(once[k], truth[k]) for k in KINDS for form in FORMS}
    return out | errors | {"cost": formula, "seconds": time.perf_counter() - begun}
  shared = arm["name"] == "shared"
  for form in FORMS:
    batch = _laid_out(problem, form, shared)
    step = _program(tuple(size.values()), form, shared)
    found = _padded(step(params, problem[0], batch), problem, form, shared)
    out |= {f"{kind}:{form}": _error(found[kind], truth[kind]) for kind in KINDS}
    if form == "xla":
      out["seconds"] = _seconds(step, (params, problem[0], batch), plan["timed"])
      whole = _program(tuple(size.values()), form, False)
      out["cost"] = _flops(step) / _flops(whole)
  return out


def _params(seed):
  params = decoder.init(CONFIG, jax.random.key(seed))
  return params | {name: 25 * params[name] for name in ("embed", "head")}


@functools.lru_cache(maxsize=4)
def _problem(size, seed) -> tuple[Rollouts, Batch, np.ndarray]:
  """(rollouts, batch of padded rows behind shared prompts, lengths [N, G])."""
  n, g, p, t = size
  rng = np.random.default_rng([seed, p, t])
  length, prompt = rng.integers(1, t + 1, (n, g)), rng.integers((p + 1) // 2, p + 1, n)
  length[:, 0], prompt[0] = t, p
  ids = rng.integers(0, SHAPE.vocab, (n, p)) * (np.arange(p) < prompt[:, None])
  mask = np.arange(t) < length.reshape(-1, 1)
  yes = np.ones((n, g), bool)
  small: dict[str, Any] = {"prompt": np.arange(n, dtype=np.int32), "alive": yes, "correct": yes}
  small |= {"truncated": ~yes, "length": length.astype(np.int32)}
  small["reward"] = rng.random((n, g)).astype(np.float32)
  large: dict[str, Any] = {
    "tokens": (rng.integers(0, SHAPE.vocab, mask.shape) * mask).astype(np.int32),
    "mask": mask.astype(np.float32),
    "unit": np.zeros(mask.shape, np.int32),
    "unit_mask": np.ones((n * g, 1), np.float32),
    "owner": np.arange(n * g, dtype=np.int32)[:, None],
    "prompt_tokens": ids.astype(np.int32),
    "prompt_length": prompt.astype(np.int32),
  }
  return Rollouts(**small), Batch(**large), length


def _laid_out(problem, form: str, shared: bool) -> Batch:
  """The batch as the form wants it; repeated: every completion has a prompt of its own."""
  _, batch, length = problem
  if not shared:
    copies = lambda x: np.repeat(x, length.shape[1], axis=0)
    prompts = {k: copies(getattr(batch, k)) for k in ("prompt_tokens", "prompt_length")}
    batch, length = batch.replace(**prompts), length.reshape(-1, 1)
  if not FORMS[form][1]:
    return batch
  width = length.shape[1] * batch.tokens.shape[1]
  return pack.pack(batch, length, lambda longest: width)


def _padded(found, problem, form: str, shared: bool) -> dict:
  """What a step gave, as padded rows, 0 where nothing is."""
  _, batch, length = problem
  out = {k: jax.tree.map(lambda x: np.asarray(x, np.float64), v) for k, v in found.items()}
  if FORMS[form][1]:
    own = length if shared else length.reshape(-1, 1)
    back = lambda x: pack.unpack(x, own, batch.tokens.shape[1]).reshape(batch.tokens.shape)
    out |= {k: back(out[k]) for k in ("logp", "entropy")}
  return out


def _program(*which):
  with _ONE_AT_A_TIME:
    return _compiled(*which)


@functools.cache
def _compiled(size, form: str, shared: bool):
  """(params, rollouts, batch) -> {"logp", "entropy", "gradient"} of a step, compiled."""
  method = methods.get("grpo")
  forward = policy.make_forward(CONFIG, chunk=0, implementation=FORMS[form][0])

  def step(params, rollouts, batch):
    credit = method.credit((), rollouts, batch)

    def loss(params):
      fwd = forward(params, batch)
      return method.loss(fwd, batch, credit)[0], (fwd.logp, fwd.entropy)

    (_, (logp, entropy)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return {"logp": logp, "entropy": entropy, "gradient": gradient}

  problem = _problem(size, 0)
  args = _params(0), problem[0], _laid_out(problem, form, shared)
  return jax.jit(step).lower(*args).compile(compiler_options=QUICK if form in SLOW else None)


def _flops(step) -> float:
  return step.cost_analysis()["flops"]


def _seconds(step, args, times: int) -> float:
  """Of a gradient step, the median."""
  took = []
  for _ in range(times):
    begun = time.perf_counter()
    jax.block_until_ready(step(*args))
    took.append(time.perf_counter() - begun)
  return middle.median(took)


@functools.lru_cache(maxsize=4)
def _truth(size, seed) -> dict:
  rollouts, batch, _ = _problem(size, seed)
  credit = methods.get("grpo").credit((), rollouts, batch)
  return exact.repeated(CONFIG, _params(seed), batch, credit)


def _error(found, truth) -> float:
  """|found - truth| / |truth| over all leaves together, in units of 2^-24."""
  square = lambda tree: sum(float(np.sum(x * x)) for x in jax.tree.leaves(tree))
  return (square(jax.tree.map(np.subtract, found, truth)) / square(truth)) ** 0.5 / ROUNDING


def statements(d):
  ratio = lambda kind, form: (
    np.asarray(d.final(d.main, f"{kind}:{form}")) / d.final("repeated", f"{kind}:{form}")
  )
  worst = lambda *kinds: np.max([ratio(k, form) for k in kinds for form in FORMS], axis=0)
  twice = {
    "margin": 1.0,
    "why": "in units of the repeated form's own error: exact forms differ by up to both errors",
  }
  cost, formula = d.final("shared", "cost"), d.final("shared", "formula")
  return [
    gates.ideal(d),
    gates.headroom(d),
    gates.without("learned", "nothing is trained, gradients are compared"),
    gates.disease(
      "share of positions that only repeat a prompt", d.final("repeated", "redundant"), ">=", 0.1
    ),
    gates.acts("FLOPs saved are the formula's within 5%", 0.05, ">=", np.abs(cost / formula - 1)),
    gates.budgets(d, "tokens"),
    claim(
      "log-probabilities and entropies: the repeated form's error (1), and the shared form's by "
      "the worst implementation",
      1.0,
      ">=",
      worst("logp", "entropy"),
      quote="it yields identical forward outputs",
      **twice,
    ),
    claim(
      "gradients: the same",
      1.0,
      ">=",
      worst("gradient"),
      quote="identical forward outputs and backward gradients",
      **twice,
    ),
    claim(
      "FLOPs of a gradient step: repeated above shared",
      d.final("repeated", "cost"),
      ">",
      d.final(d.main, "cost"),
      quote="significantly reducing the computational cost of training, particularly in "
      "long-prefix scenarios",
    ),
    side("seconds", d.final("repeated", "seconds"), ">", d.final("shared", "seconds"), margin=0.0),
    *(side(f"gradients by {form}", 1.0, ">=", ratio("gradient", form), margin=1.0)
      for form in FORMS),
  ]  # fmt: skip
