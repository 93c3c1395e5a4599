"""The tokenizer of a model folder: tokenizer.json, else a sentencepiece tokenizer.model."""

import json
from pathlib import Path
from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.models.tokenizer import FastBackend, SentencePieceBackend, Special, Tokenizer


def from_folder(folder: str | Path) -> Tokenizer:
  """Reads also tokenizer_config.json, generation_config.json, config.json, chat_template.jinja.

  eos_ids: those of generation_config.json (else config.json) and the tokenizer's own eos_token.
  """
  folder = Path(folder)
  own = _json(folder / "tokenizer_config.json")
  if (folder / "tokenizer.json").is_file():
    backend, add_bos = _fast(folder / "tokenizer.json")
    id_of = backend.tokenizer.token_to_id
  elif (folder / "tokenizer.model").is_file():
    backend = SentencePieceBackend((folder / "tokenizer.model").read_bytes())
    add_bos, processor = True, backend.processor
    id_of = lambda token: None if processor.is_unknown(i := processor.piece_to_id(token)) else i
  else:
    raise UserError(f"{folder}: neither tokenizer.json nor tokenizer.model; copy one there")

  def named(role: str) -> int | None:
    token = own.get(role)
    token = token["content"] if isinstance(token, dict) else token
    return None if token is None else id_of(token)

  models = (_json(folder / "generation_config.json"), _json(folder / "config.json"))
  eos = _first("eos_token_id", models)
  eos = list(eos) if isinstance(eos, list) else [] if eos is None else [eos]
  if named("eos_token") is not None:
    eos.append(named("eos_token"))
  if not eos:
    raise UserError(f"{folder}: no eos_token in tokenizer_config.json nor eos_token_id elsewhere")
  bos = named("bos_token")
  bos = _first("bos_token_id", models) if bos is None else bos
  # tokenizer.json says by its post-processor; the flag is for sentencepiece and transformers 5.
  add_bos = bool(own.get("add_bos_token") if own.get("add_bos_token") is not None else add_bos)
  pad = named("pad_token")
  return Tokenizer(
    backend,
    Special(
      eos_ids=tuple(dict.fromkeys(eos)),
      pad_id=eos[0] if pad is None else pad,
      bos_id=bos,
      add_bos=add_bos and bos is not None,
      chat_template=_template(folder, own),
    ),
  )


def _fast(path: Path) -> tuple[FastBackend, bool]:
  import tokenizers

  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the package raises bare Exception
    raise UserError(f"{path}: not a tokenizer file ({error})") from error
  # Ids of a batch come as they are: padding and truncation belong to the caller.
  tokenizer.no_padding()
  tokenizer.no_truncation()
  added = tokenizer.encode("a", add_special_tokens=True).ids
  plain = tokenizer.encode("a", add_special_tokens=False).ids
  return FastBackend(tokenizer), len(added) > len(plain) and added[0] != plain[0]


def _template(folder: Path, own: dict[str, Any]) -> str | None:
  file = folder / "chat_template.jinja"
  if file.is_file():
    return file.read_text(encoding="utf-8")
  template = own.get("chat_template")
  if isinstance(template, list):
    by_name = {entry["name"]: entry["template"] for entry in template}
    return by_name.get("default")
  return template


def _first(key: str, tables: tuple[dict, ...]):
  return next((t[key] for t in tables if t.get(key) is not None), None)


def _json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path}: not valid JSON ({error})") from error
