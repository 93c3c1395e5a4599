"""The tokenizer inside a GGUF file, rebuilt from its vocabulary, merges and metadata."""

import struct
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.models.tokenizer import FastBackend, SentencePieceBackend, Special, Tokenizer

# llama.cpp's src/llama-vocab.cpp: expressions applied one after the other, by tokenizer.ggml.pre.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
  "gpt-2": (_GPT2,),
  "smollm": (r"\p{N}", _GPT2),
  "llama-bpe": (_LLAMA3,),
  "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
  "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
_UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 2, 3, 4, 5, 6


def from_gguf(fields: dict[str, Any], source: str) -> Tokenizer:
  """Tokenizer from GGUF metadata; a kind or pre-tokenizer not known here raises UserError."""
  own = {k[len("tokenizer.ggml.") :]: v for k, v in fields.items() if "tokenizer.ggml." in k}
  model = own.get("model")
  if model not in ("gpt2", "llama"):
    raise UserError(f"{source}: tokenizer.ggml.model={model!r} is not supported (gpt2, llama)")
  if "tokens" not in own:
    raise UserError(f"{source}: tokenizer.ggml.tokens is missing")
  # llama.cpp's name for "no name given" is "default".
  pre = own.get("pre", "default")
  if model == "gpt2" and pre not in _SPLITS:
    raise UserError(
      f"{source}: tokenizer.ggml.pre={pre!r} is not supported ({', '.join(_SPLITS)}):"
      " another rule would cut texts into tokens that the model has not seen"
    )
  add_bos = own.get("add_bos_token", model == "llama" or pre == "llama-bpe")
  eos = [own[k] for k in ("eos_token_id", "eot_token_id", "eom_token_id") if k in own]
  if not eos:
    raise UserError(f"{source}: tokenizer.ggml.eos_token_id is missing")
  special = Special(
    eos_ids=tuple(dict.fromkeys(eos)),
    pad_id=own.get("padding_token_id", eos[0]),
    bos_id=own.get("bos_token_id"),
    add_bos=bool(add_bos),
    chat_template=fields.get("tokenizer.chat_template"),
  )
  bos = special.bos_id if special.add_bos else None
  backend = _bpe(own, pre, bos) if model == "gpt2" else _sentencepiece(own)
  return Tokenizer(backend, special)


def _bpe(own: dict[str, Any], pre: str, bos: int | None) -> FastBackend:
  from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
  from tokenizers import pre_tokenizers as pres

  tokens, types = own["tokens"], own.get("token_type", [1] * len(own["tokens"]))
  tokenizer = Tokenizer(
    models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(merge.split(" ", 1)) for merge in own["merges"]],
      ignore_merges=pre == "llama-bpe",
    )
  )
  if pre == "qwen2":
    # llama.cpp leaves this out; the models were trained on text so normalized.
    tokenizer.normalizer = normalizers.NFC()
  splits = [pres.Split(Regex(pattern), "isolated") for pattern in _SPLITS[pre]]
  tokenizer.pre_tokenizer = pres.Sequence(
    [*splits, pres.ByteLevel(add_prefix_space=bool(own.get("add_space_prefix")), use_regex=False)]
  )
  tokenizer.decoder = decoders.ByteLevel()
  for kind in (_CONTROL, _USER):
    tokenizer.add_tokens(
      [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, found in zip(tokens, types, strict=True)
        if found == kind
      ]
    )
  if bos is not None:
    # For those who read the exported tokenizer.json; `Tokenizer.encode` adds bos by itself.
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
    )
  return FastBackend(tokenizer)


def _sentencepiece(own: dict[str, Any]) -> SentencePieceBackend:
  """A sentencepiece ModelProto (BPE with byte fallback) written field by field."""
  tokens = own["tokens"]
  types = own.get("token_type", [1] * len(tokens))
  scores = own.get("scores", [0.0] * len(tokens))
  proto = b""
  for token, score, kind in zip(tokens, scores, types, strict=True):
    piece = _field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
    proto += _field(1, piece)
  unknown = own.get("unknown_token_id", types.index(_UNKNOWN) if _UNKNOWN in types else 0)
  trainer = _number(3, 2) + _number(4, len(tokens)) + _number(35, int(_BYTE in types))
  trainer += _number(40, unknown) + _number(41, own.get("bos_token_id", 1))
  trainer += _number(42, own.get("eos_token_id", 2)) + _number(43, (1 << 64) - 1)
  normalizer = _field(1, b"identity") + _number(3, int(own.get("add_space_prefix", True)))
  normalizer += _number(4, 0) + _number(5, 1)
  return SentencePieceBackend(proto + _field(2, trainer) + _field(3, normalizer))


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes([*out, value])


def _number(tag: int, value: int) -> bytes:
  return _varint(tag << 3) + _varint(value)


def _field(tag: int, value: bytes) -> bytes:
  return _varint(tag << 3 | 2) + _varint(len(value)) + value
