"""What a run is about to do, printed before anything compiles: sizes, memory, arithmetic."""

import jax

from grpo_jax.models import decoder
from grpo_jax.rollout.collect import bucket


def memory(c, run, prompt: int, completion: int) -> dict[str, float]:
  """Bytes of an update over all devices: what is held, and what exists while it runs.

  activations: what the backward pass keeps of every position and layer; with score.remat the
  layers' inputs and one layer. prompt, completion: padded lengths, of one completion.
  """
  b, m = c.batch, run.sampling.config
  pieces = b.mini * b.micro
  rows = b.prompts * run.method.plan.rows(b.group)
  positions = (b.prompts * prompt + rows * completion) / pieces
  heads = (m.num_heads + 2 * m.num_kv_heads) * m.head_dim
  seen = len(run.sampling.trunk) + prompt + completion * (b.group if c.score.pack else 1)
  layer = 2 * m.hidden_size + heads + m.num_heads * (m.head_dim + seen) + 2 * m.intermediate_size
  kept = m.num_layers * m.hidden_size + layer if c.score.remat else m.num_layers * layer
  chunk = min(c.score.chunk or 10**12, rows * completion / pieces)
  params = sum(x.nbytes for x in jax.tree.leaves(run.state.params))
  return {
    "state": sum(x.nbytes for x in jax.tree.leaves((run.state, run.reference))),
    "gradients": params * (1 + (b.micro > 1)),
    "activations": positions * kept * 4,
    "logits": chunk * m.vocab_size * 4 * 3,
  }


def outlook(c, run) -> str:
  """Rows, tokens, updates, parameters, memory and arithmetic of a step."""
  s, b = run.sampling, c.batch
  lengths = [len(s.tokenizer.encode(p.prompt)) for p in run.data.train[:64]]
  p, t = bucket(max(max(lengths) - len(s.trunk), 1)), s.budget
  n_params = decoder.num_params(run.state.params)
  rows = b.prompts * run.method.plan.rows(b.group)
  position = len(s.trunk) + b.prompts * p + rows * t
  repeated = rows * (max(lengths) + t)
  parts = memory(c, run, p, t)
  sizes = ", ".join(f"{k} {v / 1e9:.2g}" for k, v in parts.items())
  needs = f"; needs {', '.join(run.method.needs)}" if run.method.needs else ""
  shared = f" ({len(s.trunk)} of them common to all)" if s.trunk else ""
  total = f"{sum(parts.values()) / 1e9:.2g} GB over all devices"
  learning = f"{6e-12 * n_params * position * b.epochs:.2g} TFLOP of learning a step"
  return "\n".join(
    [
      f"plan: {b.prompts} prompts x {rows // b.prompts} completions = {rows} a step, "
      f"{c.steps} steps of {b.epochs} epochs x {b.mini} updates x {b.micro} micro-batches",
      f"      method {c.method}{needs}; {len(run.data.train)} problems to train on, "
      f"{c.eval.problems} held out",
      f"      prompts of {min(lengths)} to {max(lengths)} tokens{shared}, completions of at most "
      f"{t}; {position:,} positions a step, {repeated:,} if prompts were repeated",
      f"      {n_params / 1e6:.1f}M parameters, {learning}, on {run.mesh.size} device(s) "
      f"{dict(run.mesh.shape)}",
      f"      memory of an update about {total}: {sizes}",
    ]
  )
