"""A tokenizer of single characters, and of whole words where wanted."""

import tokenizers

from grpo_jax.models.tokenizer import FastBackend, Special, Tokenizer


def tokenizer(whole: tuple[str, ...] = ()) -> Tokenizer:
  """One token a character, and one for each of the `whole` words."""
  shown = {" ": "\u0120", "\n": "\u010a"}
  letters = sorted({chr(i) for i in range(33, 127)} | {" ", "\n"})
  vocab = {shown.get(c, c): i for i, c in enumerate(letters)}
  merges = []
  for word in whole:
    left = shown[" "]
    for letter in word:
      merges.append((left, letter))
      left += letter
      vocab.setdefault(left, len(vocab))
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  return Tokenizer(FastBackend(made), Special(eos_ids=(0,), pad_id=0))
