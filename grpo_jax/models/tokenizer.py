"""Text <-> ids: one class over `tokenizers` (byte-level BPE, tokenizer.json) and sentencepiece.

Ids are never made by encoding text that was decoded from ids: the two do not invert each other.
"""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from grpo_jax.errors import UserError


class Backend(Protocol):
  size: int
  transformers_class: str

  def encode(self, text: str) -> list[int]:
    """Ids of `text`; special tokens in it are recognized; nothing is added at the ends."""
    ...

  def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...

  def piece(self, index: int) -> bytes:
    """The bytes that a token stands for in the middle of a text."""
    ...

  def save(self, folder: Path) -> None: ...


@dataclasses.dataclass(frozen=True)
class Special:
  """What the files say beside the vocabulary."""

  eos_ids: tuple[int, ...]
  pad_id: int
  bos_id: int | None = None
  add_bos: bool = False
  chat_template: str | None = None


class Tokenizer:
  """What the rest of grpo_jax knows of text.

  vocab_size: ids of the tokenizer. rows: ids of the model, which may be more (padding).
  eos_ids: every id that ends an answer. pad_id: a valid id; masks come from lengths, not from it.
  """

  def __init__(self, backend: Backend, special: Special, rows: int | None = None):
    self.backend, self.special = backend, special
    self.vocab_size = backend.size
    self.rows = backend.size if rows is None else rows
    if self.vocab_size > self.rows:
      raise UserError(f"the tokenizer has {self.vocab_size} ids, the model only {self.rows}")
    self.eos_ids, self.pad_id, self.bos_id = special.eos_ids, special.pad_id, special.bos_id
    for index in (*self.eos_ids, self.pad_id, *([] if self.bos_id is None else [self.bos_id])):
      if not 0 <= index < self.vocab_size:
        raise UserError(f"special token id {index} is outside the vocabulary of {self.vocab_size}")

  def encode(self, text: str) -> list[int]:
    """Ids of a prompt. Special tokens written in the text become their ids.

    A model trained with a leading bos gets one, unless the text starts with it already, as the
    text of a chat template may. No eos is added: a prompt is there to be continued.
    """
    ids = self.backend.encode(text)
    if self.special.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
      ids = [self.bos_id, *ids]
    return ids

  def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
    """Text of ids; ids past the vocabulary are skipped, broken UTF-8 becomes U+FFFD."""
    kept = [int(i) for i in ids if 0 <= i < self.vocab_size]
    return self.backend.decode(kept, skip_special)

  @functools.cached_property
  def token_texts(self) -> tuple[str, ...]:
    """Text of each of the model's ids alone, for viewers: a part of a character shows as U+FFFD,
    an id past the vocabulary as nothing."""
    pieces = [self.backend.piece(i) for i in range(self.vocab_size)]
    pieces += [b""] * (self.rows - self.vocab_size)
    return tuple(piece.decode("utf-8", errors="replace") for piece in pieces)

  def stop_ids(self, stop: Iterable[str]) -> tuple[int, ...]:
    """eos_ids and every id whose text contains one of the strings, ascending.

    Exact for strings of one character below U+0080, such as "\\n": such a character is never cut
    over two tokens. A longer string may be, and is then not seen.
    """
    wanted = [s.encode() for s in stop]
    if b"" in wanted:
      raise UserError("stop: an empty string would stop at every token; remove it")
    pieces = (self.backend.piece(i) for i in range(self.vocab_size)) if wanted else ()
    hits = {i for i, piece in enumerate(pieces) if any(w in piece for w in wanted)}
    return tuple(sorted(hits | set(self.eos_ids)))

  def chat(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    """Messages ({"role": ..., "content": ...}) as text by the model's own jinja2 template."""
    import jinja2

    if self.special.chat_template is None:
      raise UserError("this model has no chat template; use a raw prompt")
    bos = "" if self.bos_id is None else self.token_texts[self.bos_id]
    try:
      return _compiled(self.special.chat_template).render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=bos,
        eos_token=self.token_texts[self.eos_ids[0]],
        tools=None,
        documents=None,
      )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
      raise UserError(f"chat template: {error}") from error

  def save(self, folder: str | Path) -> None:
    """Writes the files that `from_folder` and transformers read."""
    folder = Path(folder)
    self.backend.save(folder)
    names = self.token_texts
    config = {
      "add_bos_token": self.special.add_bos,
      "add_eos_token": False,
      "bos_token": None if self.bos_id is None else names[self.bos_id],
      "eos_token": names[self.eos_ids[0]],
      "pad_token": names[self.pad_id],
      "clean_up_tokenization_spaces": False,
      "tokenizer_class": self.backend.transformers_class,
    }
    if self.special.chat_template is not None:
      config["chat_template"] = self.special.chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


@functools.lru_cache(maxsize=8)
def _compiled(template: str):
  """A template from a downloaded file is someone else's program: it runs in jinja2's sandbox."""
  import jinja2
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  # jinja2's own filter escapes HTML, which no model was trained on.
  environment.filters["tojson"] = lambda value, indent=None: json.dumps(
    value, indent=indent, ensure_ascii=False
  )
  environment.globals["raise_exception"] = raise_exception
  environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
  return environment.from_string(template)


# ---- byte-level BPE and tokenizer.json -----------------------------------------------------------


@functools.cache
def _byte_of() -> dict[str, int]:
  """GPT-2's table: the printable character that stands for each byte, inverted."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  table = {chr(byte): byte for byte in plain}
  others = (byte for byte in range(256) if byte not in set(plain))
  return table | {chr(256 + i): byte for i, byte in enumerate(others)}


class FastBackend:
  """A `tokenizers.Tokenizer`."""

  transformers_class = "PreTrainedTokenizerFast"

  def __init__(self, tokenizer):
    self.tokenizer = tokenizer
    self.size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    self.added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    kinds = {decoder.get("type"), *(d["type"] for d in decoder.get("decoders", ()))}
    self.byte_level = "ByteLevel" in kinds

  def encode(self, text: str) -> list[int]:
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int], skip_special: bool) -> str:
    return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)

  def piece(self, index: int) -> bytes:
    if index in self.added:
      return self.added[index].encode()
    token = self.tokenizer.id_to_token(index)
    if token is None:
      return b""
    if self.byte_level:
      table = _byte_of()
      return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
    return sentence_piece(token)

  def save(self, folder: Path) -> None:
    self.tokenizer.save(str(folder / "tokenizer.json"))


# ---- sentencepiece -------------------------------------------------------------------------------


def sentence_piece(token: str) -> bytes:
  """Bytes of a sentencepiece token: "▁" is a space, "<0x0A>" is a byte."""
  byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
  return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


class SentencePieceBackend:
  """A sentencepiece model; control tokens written in a text are recognized here.

  As in llama.cpp the model's leading space is added at the start and after a control token.
  """

  transformers_class = "LlamaTokenizer"

  def __init__(self, model: bytes):
    import sentencepiece

    self.model = model
    self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.size = self.processor.vocab_size()
    pieces = [self.processor.id_to_piece(i) for i in range(self.size)]
    self.controls = {pieces[i]: i for i in range(self.size) if self.processor.is_control(i)}
    names = sorted(self.controls, key=len, reverse=True)
    self.splitter = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

  def encode(self, text: str) -> list[int]:
    ids = []
    for part in self.splitter.split(text) if self.splitter else [text]:
      ids += [self.controls[part]] if part in self.controls else self.processor.encode(part)
    return ids

  def decode(self, ids: Sequence[int], skip_special: bool) -> str:
    if skip_special:
      return self.processor.decode(list(ids))
    text, run = "", []
    for index in [*ids, None]:
      if index is None or self.processor.is_control(index):
        text += self.processor.decode(run)
        text += "" if index is None else self.processor.id_to_piece(index)
        run = []
      else:
        run.append(index)
    return text

  def piece(self, index: int) -> bytes:
    token = self.processor.id_to_piece(index)
    return token.encode() if token in self.controls else sentence_piece(token)

  def save(self, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(self.model)
