"""A whole run in seconds: a random two-layer Llama, a tokenizer of 16 characters, sums to learn."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tokenizers
from ml_collections import ConfigDict

from configs import common
from grpo_jax import sharding
from grpo_jax.models import decoder, safetensors_file
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.tokenizer import FastBackend, Special, Tokenizer
from grpo_jax.rollout import plans
from grpo_jax.rollout.collect import Ask
from grpo_jax.run import metrics
from grpo_jax.run.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent.parent
CHARACTERS = "0123456789+-= \n"
CONFIG = ModelConfig(
  vocab_size=16,
  hidden_size=32,
  intermediate_size=64,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  max_position=256,
  tie_embeddings=True,
)


def tokenizer() -> Tokenizer:
  shown = {" ": "\u0120", "\n": "\u010a"}  # as GPT-2's byte table writes them
  vocab = {shown.get(c, c): i for i, c in enumerate(CHARACTERS)}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab | {"<eos>": 15}, merges=[]))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens(["<eos>"])
  return Tokenizer(FastBackend(made), Special(eos_ids=(15,), pad_id=15))


def save_model(folder: Path, config: ModelConfig = CONFIG, scale: float = 8.0) -> Path:
  """A random model; embeddings of this scale make its distribution uneven, as a trained one's."""
  params = jax.tree.map(np.array, decoder.init(config, jax.random.key(3)))
  params["embed"] *= scale
  return safetensors_file.save(folder, config, params, tokenizer())


def make_config(model: Path | str, **changes) -> ConfigDict:
  """changes: {"batch.group": 4, ...} as keyword arguments with dots."""
  c = common.language_model()
  c.model = str(model)
  c.steps = 4
  c.data = {
    "source": "reasoning_gym",
    "mix": (
      {
        "name": "chain_sum",
        "label": "1-digit",
        "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
      },
    ),
    "size": 20,
    "heldout": 10,
    "prompt": {"style": "few_shot", "shots": 1, "question_regex": r"[-+\d ]+="},
  }
  c.reward.parts = ({"name": "tiny_rewards:low_digits", "threshold": 0.5},)
  c.batch.prompts, c.batch.group = 8, 4
  c.sample.max_new_tokens = 6
  c.sample.max_prompt_tokens = 64
  c.score.chunk = 0
  c.optimizer.lr = 3e-3
  c.eval.problems, c.eval.batch = 10, 8
  c.checkpoint.every = 2
  c.log.rollouts_every, c.log.tensorboard = 2, False
  for path, value in changes.items():
    *parents, last = path.split(".")
    node = c
    for name in parents:
      node = node[name]
    with node.unlocked():
      node[last] = value
  return c


def write_config(path: Path, c: ConfigDict) -> Path:
  """A config file as a person writes one: get_config() in Python."""
  body = f"def get_config():\n  return ConfigDict({c.to_dict()!r})\n"
  path.write_text("from ml_collections import ConfigDict\n\n\n" + body)
  return path


def collected(s, params, pool, draw, count, step, plan):
  """One step's batch, as the loop gets it."""
  return plans.of(plan).collect(plan, Ask(s, params, pool, draw, count, step))


def updated(parts, state, rollouts, batch, key):
  """Credit and update, as the loop makes them."""
  credit = parts.credit(state.method_state, state.step, rollouts, batch)
  return parts.update(state, rollouts, batch, credit, key)


def environment(cache: Path | None, devices: int = 1) -> dict[str, str]:
  out = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # the compiler's: most of the time of such a run
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent))),
  }
  return out | ({"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {})


def command(config: Path, workdir: Path, *changes: str) -> list[str]:
  return [
    sys.executable,
    "-m",
    "experiments.train",
    f"--config={config}",
    f"--workdir={workdir}",
    *changes,
  ]


def train(config: Path, workdir: Path, *changes: str, cache: Path | None = None, **kwargs):
  """The real command line, to its end."""
  return subprocess.run(
    command(config, workdir, *changes),
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=environment(cache, **kwargs),
  )


def final_of(stdout: str) -> dict:
  last = stdout.strip().splitlines()[-1]
  assert last.startswith("final: "), stdout
  return json.loads(last.removeprefix("final: "))


def one_device(monkeypatch) -> None:
  """Runs of this process on one of its simulated devices."""
  make_mesh = sharding.make_mesh
  monkeypatch.setattr(
    sharding, "make_mesh", lambda shape=None, devices=None: make_mesh(shape, jax.devices()[:1])
  )


def record(workdir: Path) -> dict:
  """All that a run leaves, but for times and counts of compilations."""
  untimed = lambda row: {k: v for k, v in row.items() if not k.startswith(("time_", "compiles"))}
  files = sorted(workdir.glob("rollouts/*.jsonl")) + sorted(workdir.glob("eval/*.json"))
  final = json.loads((workdir / "final.json").read_text())
  return {
    "metrics": [untimed(row) for row in metrics.read_metrics(workdir)],
    "files": {path.name: path.read_text() for path in files},
    "final": {k: v for k, v in final.items() if k != "wall_s"},
  }


def saved(workdir: Path, step: int) -> tuple[dict[str, np.ndarray], dict]:
  """Arrays and host position of a checkpoint, read without the program that wrote it."""
  checkpoints = Checkpoints(workdir)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # saved by other devices, maybe
  state = ocp.args.StandardRestore(fallback_sharding=here)
  args = ocp.args.Composite(state=state, host=ocp.args.JsonRestore())
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    found = checkpoints.manager.restore(step, args=args)
  checkpoints.close()
  return {k: np.asarray(v) for k, v in found["state"].items()}, found["host"]


def assert_same_run(a: Path, b: Path, step: int) -> None:
  """Bitwise: parameters, optimizer, method state, position, metrics, rollouts, evaluations."""
  one, two = record(a), record(b)
  assert one["metrics"] == two["metrics"]
  assert one["files"] == two["files"]
  assert one["final"] == two["final"]
  (arrays, host), (others, other_host) = saved(a, step), saved(b, step)
  assert host == other_host
  assert arrays.keys() == others.keys() and len(arrays) > 20
  for name in arrays:
    np.testing.assert_array_equal(arrays[name], others[name], err_msg=name)


def start(config: Path, workdir: Path, *changes: str, cache: Path | None = None):
  return subprocess.Popen(
    command(config, workdir, *changes),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    cwd=ROOT,
    env=environment(cache),
  )


def kill(process: subprocess.Popen) -> None:
  if process.poll() is None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def kill_inside_a_save(process: subprocess.Popen, workdir: Path) -> bool:
  """kill -9 while a half-written checkpoint is there; True if it still is, afterwards."""
  half = lambda: [p for p in workdir.glob("checkpoints/*tmp*") if p not in left]
  left = list(workdir.glob("checkpoints/*tmp*"))
  while not half() and process.poll() is None:
    pass
  kill(process)
  return bool(half())


def last_row(workdir: Path) -> int:
  path = workdir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def saved_steps(workdir: Path) -> list[int]:
  return sorted(int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit())
