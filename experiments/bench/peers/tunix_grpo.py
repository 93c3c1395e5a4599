"""The step of Tunix's GRPOLearner on the CPU: `TUNIX_PYTHON -m experiments.bench.peers.tunix_grpo`.

Runs in Tunix's environment and imports nothing of grpo_jax. A random Llama of the same shape, the
"vanilla" rollout engine, float32, beta 0.
"""

import importlib.metadata
import logging
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama3
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

from experiments.bench import record

logging.disable(logging.WARNING)


class Numbers:
  """A tokenizer of texts like "5 17 9"."""

  def encode(self, text, **_):
    return [int(word) for word in text.split()]

  def decode(self, ids, **_):
    return " ".join(str(int(i)) for i in ids)

  def pad_id(self):
    return 0

  def eos_id(self):
    return 1

  def bos_id(self):
    return None


def random_llama(a, mesh):
  config = llama3.ModelConfig(
    num_layers=a.layers,
    vocab_size=a.vocab,
    embed_dim=a.hidden,
    hidden_dim=a.ffn,
    num_heads=a.heads,
    head_dim=a.hidden // a.heads,
    num_kv_heads=a.heads,
    rope_theta=10000,
    norm_eps=1e-5,
  )
  with mesh:
    return llama3.Llama3(config, rngs=nnx.Rngs(params=0))


def cluster_of(a, model, mesh):
  role = rl_cluster.Role
  return rl_cluster.RLCluster(
    actor=model,
    tokenizer=Numbers(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys((role.ACTOR, role.REFERENCE, role.ROLLOUT), mesh),
      rollout_engine="vanilla",
      offload_to_cpu=False,
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adamw(1e-6),
        max_steps=a.warmup + a.steps,
        eval_every_n_steps=10**9,
        mini_batch_size=a.prompts,
        train_micro_batch_size=a.prompts,
        rollout_micro_batch_size=a.prompts,
      ),
      rollout_config=base_rollout.RolloutConfig(
        max_prompt_length=a.prompt,
        max_tokens_to_generate=a.new,
        kv_cache_size=a.prompt + a.new,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
        eos_tokens=[a.vocab + 1],  # an id that cannot be sampled: every completion is full
      ),
    ),
  )


def main(argv=None) -> dict:
  a = record.arguments(argv)
  mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  model = random_llama(a, mesh)
  size = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
  cluster = cluster_of(a, model, mesh)
  rng = np.random.default_rng(0)
  batches = [
    {"prompts": np.array([" ".join(map(str, row)) for row in rows.tolist()])}
    for rows in rng.integers(3, a.vocab, (a.warmup + a.steps, a.prompts, a.prompt))
  ]
  clock, sampled = record.Clock(), []

  def weights_ready():
    jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))

  generate = clock.timed("generate", cluster.generate)

  def counted(*args, **kwargs):
    clock.tick()  # a step begins with its rollouts
    out = generate(*args, **kwargs)
    sampled.append(sum(map(len, out.tokens)))
    return out

  cluster.generate = counted
  cluster.update_actor = clock.timed("update", cluster.update_actor, after=weights_ready)

  def mean_id(prompts, completions, **_):
    return [float(np.mean([int(w) for w in c.split()])) / a.vocab for c in completions]

  learner = grpo_learner.GRPOLearner(
    rl_cluster=cluster,
    reward_fns=mean_id,
    algo_config=grpo_learner.GRPOConfig(
      num_generations=a.group, num_iterations=1, beta=0.0, epsilon=0.2
    ),
  )
  learner.train(iter(batches))
  clock.tick()
  assert set(sampled) == {a.prompts * a.group * a.new}, sampled
  return record.summary(
    clock,
    a,
    framework="tunix",
    versions={
      "google-tunix": importlib.metadata.version("google-tunix"),
      "jax": jax.__version__,
      "flax": importlib.metadata.version("flax"),
      "python": sys.version.split()[0],
    },
    params=size,
  )


if __name__ == "__main__":
  record.emit(main())
