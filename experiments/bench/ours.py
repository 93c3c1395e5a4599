"""One GRPO step of grpo_jax, timed in a process of its own: `python -m experiments.bench.ours`.

The pieces are those of train/llm.py: collect (sample, decode to text, reward, assemble), then the
compiled update. Only the tokenizer and the pool of reward processes are stand-ins, so that the
prompt is token ids and the reward is a function of ids, as for the peers.
"""

import dataclasses
import functools
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import optax

from experiments.bench import record, work
from experiments.bench.compiled import config_of
from grpo_jax import methods, sharding
from grpo_jax.models import decoder, policy
from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout import flat
from grpo_jax.rollout.choose import Choice
from grpo_jax.rollout.collect import Ask, Sampling
from grpo_jax.train.update import credit_of, init_state, make_update
from grpo_jax.types import Flat


class Ids:
  """A tokenizer of texts like "5 17 9"."""

  def encode(self, text: str) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids) -> str:
    return " ".join(map(str, ids))


class MeanId:
  """Stands for the reward pool: the mean token id over the vocabulary size."""

  def __init__(self, vocab: int):
    self.vocab = vocab

  def score(self, texts, problems, lengths):
    del problems, lengths
    reward = np.asarray([np.mean([int(w) for w in t.split()]) / self.vocab for t in texts])
    return SimpleNamespace(
      reward=reward,
      parts=reward[:, None],
      correct=reward > 0.5,
      alive=np.ones(len(texts), bool),
      failed={},
      errors=(),
      units=None,
    )


@dataclasses.dataclass(frozen=True)
class Problem:
  id: int
  prompt: str


def model_config(a) -> ModelConfig:
  return config_of(work.llama(a), a.prompt + a.new)


def main(argv: list[str] | None = None) -> dict:
  a = record.arguments(argv)
  config = model_config(a)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  method = methods.get("grpo")
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))

  def start(key):
    return init_state(decoder.init(config, key), tx, method, 1)

  specs = sharding.param_specs(jax.eval_shape(start, jax.random.key(0)), mesh)
  state = jax.jit(start, out_shardings=specs)(jax.random.key(0))
  size = decoder.num_params(state.params)
  sampling = Sampling(
    config=config,
    tokenizer=Ids(),
    group=a.group,
    budget=a.new,
    max_prompt=a.prompt,
    stop=(),
    stop_ids=(),
    choice=Choice(),
    slots=0,
    seed=0,
    mesh=mesh,
  )
  credit = jax.jit(functools.partial(credit_of, method))
  update = make_update(method, policy.make_forward(config), tx)
  rng = np.random.default_rng(0)
  problems = [
    Problem(i, " ".join(map(str, rng.integers(3, a.vocab, a.prompt))))
    for i in range(a.prompts * (a.warmup + a.steps))
  ]
  draws = iter(np.arange(len(problems)).reshape(-1, a.prompts))
  draw = lambda _: [problems[i] for i in next(draws)]

  clock, gap, tokens = record.Clock(), 0.0, 0
  clock.tick()
  for step in range(a.warmup + a.steps):
    got = flat.collect(Flat(), Ask(sampling, state.params, MeanId(a.vocab), draw, a.prompts, step))
    clock.add("generate", got.seconds["sample"])
    started = time.perf_counter()
    batch = sharding.put(got.batch, sharding.rows(mesh))
    rollouts = sharding.put(got.rollouts, sharding.replicated(mesh))
    made = credit(state.method_state, state.step, rollouts, batch)
    state, metrics, _ = update(state, rollouts, batch, made, jax.random.key(step))
    jax.block_until_ready(state)
    clock.add("update", time.perf_counter() - started)
    clock.tick()
    gap = max(gap, float(metrics["max_logp_gap"]))
    tokens += int(got.rollouts.length.sum())
  assert tokens == a.prompts * a.group * a.new * (a.warmup + a.steps)
  return record.summary(
    clock,
    a,
    framework="grpo_jax",
    versions={"jax": jax.__version__, "python": sys.version.split()[0]},
    params=size,
    max_logp_gap=gap,
  )


if __name__ == "__main__":
  record.emit(main())
