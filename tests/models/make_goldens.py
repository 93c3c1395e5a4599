"""Golden logits and token ids from transformers; run by hand in the PyTorch environment.

  python tests/models/make_goldens.py families           tiny random models of each family
  python tests/models/make_goldens.py smollm2 FILE.gguf  the embedded model
  python tests/models/make_goldens.py reload FOLDER ...  logits of exported folders, as .npz

It imports nothing of grpo_jax: what it writes is independent of what is tested against it.
"""

import functools
import itertools
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import regex
import torch
import transformers

HERE = Path(__file__).parent / "golden"
LENGTHS = (48, 17, 1)  # ragged rows, padded on the right; 48 is past every original context below

LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
  "rope_theta": 5e5,
}
SMALL = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
}
FAMILIES = {
  "llama_tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
  "llama_untied": ("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 3e-4, "head_dim": 12}),
  "llama3_rope": ("Llama", {"rope_parameters": LLAMA3, "num_key_value_heads": 1, "head_dim": 24}),
  "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
  "qwen3": ("Qwen3", {"head_dim": 20, "tie_word_embeddings": True, "rms_norm_eps": 7e-5}),
}


def tokens_of(vocab: int, lengths=LENGTHS) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, vocab, (len(lengths), max(lengths)), dtype=np.int32)
  for row, length in zip(tokens, lengths, strict=True):
    row[length:] = 0
  return tokens, np.array(lengths, np.int32)


def logits_of(model, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  mask = np.arange(tokens.shape[1])[None] < lengths[:, None]
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask).long()
    )
  return out.logits.float().numpy() * mask[..., None]


def families() -> None:
  for name, (kind, changes) in FAMILIES.items():
    torch.manual_seed(len(name))
    config = getattr(transformers, kind + "Config")(**(SMALL | changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, kind + "ForCausalLM")(config).eval()
    # Values that a wrong eps, scale, transposition or a forgotten bias or norm cannot survive.
    for key, value in model.named_parameters():
      spread = 0.3 if "norm" in key or "bias" in key else 0.25
      value.data = torch.randn_like(value) * spread + (1.0 if "norm" in key else 0.0)
    folder = HERE / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens, lengths = tokens_of(config.vocab_size)
    logits = logits_of(model, tokens, lengths)
    np.savez_compressed(folder / "golden.npz", tokens=tokens, lengths=lengths, logits=logits)
    print(name, f"logits std {logits[0].std():.2f}", sorted(p.name for p in folder.iterdir()))


TEXTS = (
  "The capital of France is Paris. The capital of Japan is Tokyo. In 1998, 12345 people lived"
  " there, and the city had 17 bridges, 4 theatres and one opera house, which burnt down in 1871"
  " and was built again in 1875 at a cost of",
  "<|im_start|>user\ndef add(a, b):\n    return a + b\n\nWhat does add(12, 30) give?<|im_end|>\n"
  "<|im_start|>assistant\nThe function adds its arguments, so 12 + 30 = 42.<|im_end|>\n"
  "<|im_start|>user\nÉcris-le en français, s'il te plaît: quarante-deux<|im_end|>",
)


@functools.cache
def vocabulary(path: Path):
  """Vocabulary, merge ranks and control tokens, by the `gguf` package's own reader."""
  fields = gguf.GGUFReader(path).fields
  tokens, merges, kinds = (
    fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type")
  )
  ids = {token: i for i, token in enumerate(tokens)}
  ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
  return ids, ranks, [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]


def bpe(text: str, ids: dict, ranks: dict, controls: list[str]) -> list[int]:
  """Byte-level BPE as llama.cpp does it for pre = smollm: each digit alone, then GPT-2's rule."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letter = {b: chr(b) for b in plain}
  letter |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in letter)}
  rule = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
  out = []
  for part in regex.split("(" + "|".join(map(regex.escape, controls)) + ")", text):
    if part in controls:
      out.append(ids[part])
      continue
    for piece in regex.split(r"(\p{N})", part):
      for word in regex.findall(rule, piece):
        symbols = [letter[b] for b in word.encode()]
        while len(symbols) > 1:
          pairs = [ranks.get(pair, 1 << 30) for pair in itertools.pairwise(symbols)]
          at = pairs.index(min(pairs))
          if pairs[at] == 1 << 30:
            break
          symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        out += [ids[s] for s in symbols]
  return out


def smollm2(path: str) -> None:
  path = Path(path)
  # transformers reads the GGUF by itself: its own dequantization, permutation and tokenizer.
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  ids = [bpe(text, *vocabulary(path))[:64] for text in TEXTS]
  assert all(len(row) == 64 for row in ids), [len(row) for row in ids]
  tokens, lengths = np.array(ids, np.int32), np.array([64, 64], np.int32)
  logits = logits_of(model, tokens, lengths)
  top = np.argsort(-logits, axis=-1)[..., :64].astype(np.int32)
  some = np.sort(np.random.default_rng(1).choice(logits.shape[-1], 200, replace=False))
  log_z = torch.logsumexp(torch.tensor(logits, dtype=torch.float64), -1).numpy()
  np.savez_compressed(
    HERE / "smollm2_logits.npz",
    tokens=tokens,
    top=top.astype(np.uint16),
    top_logits=np.take_along_axis(logits, top.astype(np.int64), -1),
    some=some.astype(np.uint16),
    some_logits=logits[..., some],
    log_z=log_z,
  )
  texts = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
  rows = [bpe(text, *vocabulary(path)) for text in texts]
  messages = [
    [{"role": "user", "content": "Hi"}],
    [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": "2 + 2?"},
      {"role": "assistant", "content": "4"},
      {"role": "user", "content": '<&> "é"?'},
    ],
  ]
  chats = [
    {
      "messages": m,
      "prompt": p,
      "text": tokenizer.apply_chat_template(m, add_generation_prompt=p, tokenize=False),
    }
    for m in messages
    for p in (True, False)
  ]
  theirs = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
  other = sum(a != b for a, b in zip(rows, theirs, strict=True))
  print("texts on which transformers' own GGUF tokenizer differs:", other)
  golden = {"ids": rows, "chats": chats}
  (HERE / "smollm2_tokens.json").write_text(json.dumps(golden, separators=(",", ":")))
  print("sizes", [(p.name, p.stat().st_size) for p in HERE.iterdir() if p.is_file()])


def reload(*folders: str) -> None:
  for folder in folders:
    _reload(folder)


def _reload(folder: str) -> None:
  """Writes reloaded.npz beside an exported folder's files: transformers' view of the export."""
  path = Path(folder)
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    path, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
  )
  assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
  tokens, lengths = tokens_of(model.config.vocab_size)
  logits = logits_of(model.eval(), tokens, lengths)
  out = {"tokens": tokens, "lengths": lengths, "logits": logits}
  if (path / "tokenizer_config.json").is_file():
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    texts = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
    out["ids"] = json.dumps([tokenizer(t)["input_ids"] for t in texts])
    out["eos"], out["bos"] = str(tokenizer.eos_token_id), str(tokenizer.bos_token_id)
    out["chat"] = ""
    if tokenizer.chat_template:
      out["chat"] = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
      )
  np.savez(path / "reloaded.npz", **out)


if __name__ == "__main__":
  globals()[sys.argv[1]](*sys.argv[2:])
