"""The step of TRL's GRPOTrainer on the CPU: `TRL_PYTHON -m experiments.bench.peers.trl_grpo`.

Runs in TRL's environment and imports nothing of grpo_jax. A random transformers Llama of the same
shape, transformers' generate for the rollouts (no vLLM on a CPU), float32, beta 0.
"""

import os
import sys
import tempfile

os.environ |= {
  "HF_HUB_OFFLINE": "1",
  "TOKENIZERS_PARALLELISM": "false",
  "CUDA_VISIBLE_DEVICES": "",
  "TRL_EXPERIMENTAL_SILENCE": "1",
}

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from experiments.bench import record

PAD, STOP, UNKNOWN = "[pad]", "[stop]", "[unknown]"


def number_tokenizer(vocab: int):
  """Words "3" to str(vocab - 1) are their own ids."""
  ids = {PAD: 0, STOP: 1, UNKNOWN: 2} | {str(i): i for i in range(3, vocab)}
  backend = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
  backend.pre_tokenizer = WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    pad_token=PAD,
    eos_token=STOP,
    unk_token=UNKNOWN,
    padding_side="left",
  )


def random_llama(a):
  torch.manual_seed(0)
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=a.vocab,
      hidden_size=a.hidden,
      intermediate_size=a.ffn,
      num_hidden_layers=a.layers,
      num_attention_heads=a.heads,
      num_key_value_heads=a.heads,
      max_position_embeddings=2048,
      tie_word_embeddings=False,
      pad_token_id=0,
      eos_token_id=1,
      bos_token_id=None,
    )
  )


def settings(a, folder: str):
  rows = a.prompts * a.group
  return trl.GRPOConfig(
    output_dir=folder,
    max_steps=a.warmup + a.steps,
    per_device_train_batch_size=rows,
    num_generations=a.group,
    max_completion_length=a.new,
    generation_kwargs={"min_new_tokens": a.new},  # no stop token before the budget
    temperature=1.0,
    beta=0.0,
    num_iterations=1,
    loss_type="grpo",
    learning_rate=1e-6,
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
    save_strategy="no",
    logging_steps=10**6,
    report_to=[],
    disable_tqdm=True,
  )


class StepEnds(transformers.TrainerCallback):
  def __init__(self, clock):
    self.clock = clock

  def on_train_begin(self, *args, **kwargs):
    self.clock.tick()

  def on_step_end(self, *args, **kwargs):
    self.clock.tick()


def main(argv=None) -> dict:
  a = record.arguments(argv)
  rng = np.random.default_rng(0)
  count = a.prompts * (a.warmup + a.steps)
  rows = rng.integers(3, a.vocab, (count, a.prompt))
  model = random_llama(a)
  size = sum(p.numel() for p in model.parameters())
  sampled = []

  def mean_id(completions, completion_ids, **_):
    sampled.append(sum(map(len, completion_ids)))
    return [float(np.mean(ids)) / a.vocab for ids in completion_ids]

  clock = record.Clock()
  with tempfile.TemporaryDirectory() as folder:
    trainer = trl.GRPOTrainer(
      model=model,
      reward_funcs=mean_id,
      args=settings(a, folder),
      train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, r)) for r in rows.tolist()]}),
      processing_class=number_tokenizer(a.vocab),
    )
    trainer.add_callback(StepEnds(clock))
    scoring = record.Clock()
    trainer._generate = clock.timed("generate", trainer._generate)
    trainer._generate_and_score_completions = scoring.timed(
      "all", trainer._generate_and_score_completions
    )
    trainer.train()
  # What is not sampling and scoring is the update; what scoring is beyond generate is "other".
  clock.phases["update"] = [t - s for t, s in zip(clock.wall, scoring.phases["all"], strict=True)]
  assert set(sampled) == {a.prompts * a.group * a.new}, sampled
  return record.summary(
    clock,
    a,
    framework="trl",
    versions={
      "trl": trl.__version__,
      "torch": torch.__version__,
      "transformers": transformers.__version__,
      "python": sys.version.split()[0],
    },
    params=size,
    threads=torch.get_num_threads(),
  )


if __name__ == "__main__":
  record.emit(main())
