"""Every field that a run reads, with its default, a base a loop; configs change what they need."""

from typing import Any

from ml_collections import ConfigDict

from grpo_jax.names import unknown


def language_model() -> Any:
  """Defaults of the language-model loops. Lists are tuples, so that a config stays hashable.

  Locked: a field that is not here is an error where a config sets it. `data` and `method_args` are
  open, as their readers check them.
  """
  c: Any = ConfigDict()  # Any: to a type checker a field may be of every type at once
  c.loop = "llm"
  c.seed = 0
  c.steps = 100  # sampling rounds; each makes batch.epochs * batch.mini optimizer updates
  c.model = "smollm2"  # "smollm2", a .gguf file, a folder of transformers, or a hub id
  c.method = "grpo"
  c.method_args = ConfigDict()  # keyword arguments of the method's make()
  c.data = ConfigDict()  # see grpo_jax/data/loader.py
  c.reward = ConfigDict(
    {
      "parts": (),  # empty: the scorer that belongs to the data
      "workers": 1,
      "timeout_s": 2.0,
      "memory_mb": 512,
    }
  )
  c.batch = ConfigDict(
    {
      "prompts": 8,
      "group": 16,  # completions a prompt
      "epochs": 1,
      "mini": 1,  # optimizer updates an epoch
      "micro": 1,  # pieces of a mini-batch whose gradients are summed
    }
  )
  c.sample = ConfigDict(
    {
      "temperature": 1.0,
      "max_new_tokens": 64,
      "max_prompt_tokens": 512,
      "stop": (),  # texts that end an answer, beside the model's eos; empty: the data's own
      "units": 1,  # lines, turns or other units of an answer that get an advantage each, at most
      "cut": "",  # the text that ends a unit: "\n" for lines
      "gold": " {answer}",  # what a right last turn says, for methods that read beliefs
      "slots": 0,  # completions of a prompt that decode at once; 0: all of them
      "share_start": True,  # compute the text that all prompts begin with once
    }
  )
  c.score = ConfigDict(
    {
      "chunk": 512,  # tokens whose logits exist at a time; 0: all
      "remat": False,  # recompute layers in the backward pass
      "pack": False,  # completions of a prompt in one row: no arithmetic on padding, but attention
      # between the G completions is computed and masked: for answers that are short
    }
  )
  c.kernels = ConfigDict(
    {  # "auto": what suits the device; or "xla", "tpu", "gpu", "reference" by name
      "attention": "auto",  # in scoring and update
      "decode": "auto",  # in sampling
      "logprob": "auto",  # of the head
    }
  )
  c.optimizer = ConfigDict(
    {
      "name": "adamw",
      "lr": 1e-6,
      "schedule": "constant",
      "warmup": 0,
      "b1": 0.9,
      "b2": 0.99,
      "eps": 1e-8,
      "weight_decay": 0.0,
      "clip_norm": 1.0,
    }
  )
  c.eval = ConfigDict(
    {
      "every": 0,  # 0: before and after only
      "problems": 256,
      "batch": 64,
      "samples": 0,  # k of pass@k and maj@k; 0: greedy accuracy only
      "temperature": 0.6,
      "top_k": 0,
      "top_p": 0.95,
    }
  )
  c.checkpoint = ConfigDict({"every": 50, "keep": 2})
  c.log = ConfigDict({"rollouts_every": 10, "rollouts_prompts": 4, "tensorboard": True})
  c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
  c.export = ""  # a folder: the trained policy as safetensors, `model` of another run
  c.lock()
  c.data.unlock()
  c.method_args.unlock()
  return c


def in_context() -> Any:
  """Every field that the in-context loop reads, with its default."""
  c: Any = ConfigDict()
  c.loop = "in_context"
  c.seed = 0
  c.seeds = 3  # models trained side by side, from seed on
  c.steps = 3000
  c.method = "dpt"
  c.method_args = ConfigDict()  # keyword arguments of the method's make()
  c.data = ConfigDict()  # family, and the keyword arguments of its make()
  c.tokens = "transition"  # or split, history: rollout/in_context/tokens.py
  c.batch = 64  # contexts a step
  c.pairs = False  # two contexts of every task, for contrastive losses
  c.model = ConfigDict(
    {
      "hidden": 32,
      "layers": 3,
      "heads": 4,  # DPT's arguments say so, its network has 1: far slower to learn
      "ffn": 4,
      "wide": True,  # larger weights at the start: train/programs/in_context.py: widened
    }
  )
  c.moe = ConfigDict(
    {  # of the last layer, see models/moe/layer.py; no experts: a plain one
      "experts": 0,
      "task_experts": 0,
      "top_k": 2,
      "hidden": 128,
      "noisy": True,
      "hard": False,
      "softmax": False,
      "skip": 1,
      "dense": False,  # one dense layer with as many weights as a token would meet
    }
  )
  c.optimizer = ConfigDict(
    {
      "lr": 2e-3,
      "b2": 0.99,
      "schedule": "cosine",
      "warmup": 100,
      "weight_decay": 1e-4,
      "clip_norm": 0.0,  # 0: none
    }
  )
  c.eval = ConfigDict(
    {
      "every": 500,
      "tasks": 500,  # where the family holds none out
      "steps": 0,  # pulls online; 0: as many as a context holds
      "episodes": 5,
      "greedy": False,
      "explore": False,  # online episodes begin after one of uniform actions
    }
  )
  c.checkpoint = ConfigDict({"every": 500, "keep": 2})
  c.log = ConfigDict({"every": 100, "tensorboard": True})
  c.lock()
  c.data.unlock()
  c.method_args.unlock()
  return c


def check_variant(variant: str, known: tuple[str, ...] = ("debug",)) -> list[str]:
  """The comma-separated parts of FILE.py:variant; UserError for one that is not known."""
  parts = [part for part in variant.split(",") if part]
  for part in parts:
    if part not in known:
      raise unknown("variant", part, known)
  return parts
