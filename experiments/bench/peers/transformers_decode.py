"""Decode speed of the same model by transformers' generate; runs in TRL's environment.

`TRL_PYTHON -m experiments.bench.peers.transformers_decode FOLDER`: key-value cache on, sampling at
temperature 1 without top-k or top-p, no stop token.
"""

import json
import os
import sys

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch
import transformers

from experiments.bench import record
from experiments.bench.decode import arguments, summarize, timed


def main(argv=None) -> dict:
  a = arguments(argv)
  if a.threads:
    torch.set_num_threads(a.threads)
  transformers.logging.set_verbosity_error()
  model = transformers.AutoModelForCausalLM.from_pretrained(a.folder, dtype=torch.float32).eval()
  model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no stop token
  prompt = torch.tensor(json.loads((a.folder / "prompts.json").read_text()))
  rows = prompt.repeat_interleave(a.group, dim=0)
  torch.manual_seed(0)

  @torch.inference_mode()
  def generate(ids, new: int, **how):
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, use_cache=True, **how)
    assert out.shape[1] == ids.shape[1] + new
    return out[:, ids.shape[1] :]

  sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
  first_call = timed(lambda: generate(rows, a.new, **sampling))
  pairs = [
    (
      timed(lambda: generate(rows, a.new, **sampling)),
      timed(lambda: generate(rows, 1, **sampling)),
    )
    for _ in range(a.repeats)
  ]
  return summarize(
    a,
    *map(list, zip(*pairs, strict=True)),
    framework="transformers",
    versions={"transformers": transformers.__version__, "torch": torch.__version__},
    threads=torch.get_num_threads(),
    first_call_s=round(first_call, 2),
    greedy=generate(prompt, a.greedy, do_sample=False).tolist(),
  )


if __name__ == "__main__":
  record.emit(main(sys.argv[1:]))
