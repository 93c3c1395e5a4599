"""Online evaluation of a Decision-Pretrained Transformer in PyTorch, after the released design.

`TRL_PYTHON -m experiments.bench.peers.torch_dpt FOLDER --tasks N`. Written anew from the method's
description (J. Lee et al., 2023, https://arxiv.org/abs/2306.14892, and what its published code
does): a GPT-2 of transformers over linear embeddings of transitions, a Python loop over the
horizon, and every step passes the whole context so far through the model. N bandits are one batch;
with N = 1 they are evaluated one after the other. Kinder than it need be: no gradients, no padding,
no cache object filled in vain, attention by PyTorch's fused kernel, and bandits in NumPy for all
tasks at once.

The weights are those of `ours_in_context.py --export`; `gap` is the largest difference of logits
on its contexts, `same_arms` the part of their steps at which both choose the same arm.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import torch
import transformers

from experiments.bench import record

NOISE = 0.3


def arguments(argv=None):
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("folder", type=Path)
  for name, default in (("tasks", 200), ("heads", 4), ("calls", 1), ("repeats", 2)):
    parser.add_argument(f"--{name}", type=int, default=default)
  return parser.parse_args(argv)


class Learner(torch.nn.Module):
  """[query; transitions] -> logits at every token."""

  def __init__(self, weights: dict[str, np.ndarray], heads: int):
    super().__init__()
    inputs, hidden = weights["embed/w"].shape
    arms = weights["head/w"].shape[1]
    layers = 1 + max(int(k.split("/")[1]) for k in weights if k.startswith("layers/"))
    self.trunk = transformers.GPT2Model(
      transformers.GPT2Config(
        vocab_size=1,
        n_positions=weights["position"].shape[0],
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
      )
    )
    self.embed = torch.nn.Linear(inputs, hidden)
    self.head = torch.nn.Linear(hidden, arms)
    self.load(weights, layers)
    self.eval()

  def load(self, weights, layers: int) -> None:
    """GPT-2's matrices are [inputs, outputs], torch's linear maps the other way round."""
    named = {"wpe.weight": "position", "ln_f.weight": "norm/scale", "ln_f.bias": "norm/bias"}
    for i in range(layers):
      for theirs, mine in (
        ("ln_1.weight", "norm1/scale"),
        ("ln_1.bias", "norm1/bias"),
        ("attn.c_attn.weight", "qkv"),
        ("attn.c_attn.bias", "qkv_bias"),
        ("attn.c_proj.weight", "proj"),
        ("attn.c_proj.bias", "proj_bias"),
        ("ln_2.weight", "norm2/scale"),
        ("ln_2.bias", "norm2/bias"),
        ("mlp.c_fc.weight", "up"),
        ("mlp.c_fc.bias", "up_bias"),
        ("mlp.c_proj.weight", "down"),
        ("mlp.c_proj.bias", "down_bias"),
      ):
        named[f"h.{i}.{theirs}"] = f"layers/{i}/{mine}"
    tensors = {k: torch.from_numpy(weights[v]) for k, v in named.items()}
    absent, unknown = self.trunk.load_state_dict(tensors, strict=False)
    assert not unknown and set(absent) <= {"wte.weight"}, (absent, unknown)
    for module, name in ((self.embed, "embed"), (self.head, "head")):
      transposed = torch.from_numpy(np.ascontiguousarray(weights[f"{name}/w"].T))
      module.load_state_dict({"weight": transposed, "bias": torch.from_numpy(weights[f"{name}/b"])})

  def forward(self, x):
    return self.head(self.trunk(inputs_embeds=self.embed(x)).last_hidden_state)


def tokens(action: np.ndarray, reward: np.ndarray, arms: int) -> np.ndarray:
  """[query; (s, a, s', r) x h] of a bandit, whose state is the constant 1; f32[N, 1 + h, 3 + A]."""
  n, h = action.shape
  x = np.zeros((n, 1 + h, 3 + arms), np.float32)
  x[:, 0, 0] = 1
  x[:, 1:, 0] = 1
  x[:, 1:, 1 : 1 + arms] = np.eye(arms, dtype=np.float32)[action]
  x[:, 1:, 1 + arms] = 1
  x[:, 1:, 2 + arms] = reward
  return x


@torch.inference_mode()
def evaluate(model: Learner, tasks: int, rng: np.random.Generator) -> np.ndarray:
  """Regret [tasks] of an episode of each of `tasks` fresh bandits, as long as positions allow."""
  arms, horizon = model.head.out_features, model.trunk.config.n_positions - 1
  mean = rng.random((tasks, arms))
  action = np.zeros((tasks, horizon), np.int64)
  reward = np.zeros((tasks, horizon), np.float32)
  rows = np.arange(tasks)
  for h in range(horizon):
    x = torch.from_numpy(tokens(action[:, :h], reward[:, :h], arms))
    p = torch.softmax(model(x)[:, -1], dim=-1)
    action[:, h] = torch.multinomial(p, 1)[:, 0].numpy()
    reward[:, h] = mean[rows, action[:, h]] + NOISE * rng.standard_normal(tasks)
  return (mean.max(axis=1, keepdims=True) - mean[rows[:, None], action]).sum(axis=1)


@torch.inference_mode()
def compare(model: Learner, contexts) -> dict:
  x = tokens(contexts["action"], contexts["reward"], model.head.out_features)
  theirs = model(torch.from_numpy(x)).numpy()
  same = theirs.argmax(-1) == contexts["logits"].argmax(-1)
  return {
    "gap": float(np.abs(theirs - contexts["logits"]).max()),
    "same_arms": float(same.mean()),
    "logit_range": float(np.ptp(contexts["logits"])),
  }


def main(argv=None) -> dict:
  a = arguments(argv)
  transformers.logging.set_verbosity_error()
  model = Learner(dict(np.load(a.folder / "weights.npz")), a.heads)
  found = compare(model, np.load(a.folder / "contexts.npz"))
  torch.manual_seed(0)
  rng, timer = np.random.default_rng(0), record.Repeats()
  evaluate(model, min(a.tasks, 8), rng)
  lost = [
    timer(lambda: [evaluate(model, a.tasks, rng) for _ in range(a.calls)]) for _ in range(a.repeats)
  ]
  return timer.summary(
    a.tasks * a.calls,
    framework="torch",
    versions={"torch": torch.__version__, "transformers": transformers.__version__},
    threads=torch.get_num_threads(),
    tasks=a.tasks,
    regret=round(float(np.mean(lost)), 2),
    **found,
  )


if __name__ == "__main__":
  record.emit(main(sys.argv[1:]))
