"""Tokenizers: golden ids of SmolLM2, the rules of other pre-tokenizers, sentencepiece, chat."""

import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece

from grpo_jax.errors import UserError
from grpo_jax.models import embedded, gguf_file, hf_tokenizer
from grpo_jax.models.gguf_tokenizer import from_gguf
from grpo_jax.models.tokenizer import SentencePieceBackend, Special, Tokenizer

GOLDEN = Path(__file__).parent / "golden"
TEXTS = json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
  path = embedded.cache_folder() / embedded.FILE
  if not path.is_file():
    pytest.skip("the embedded model is not in the cache: python -m grpo_jax.models.embedded")
  return from_gguf(gguf_file.read_header(path).fields, str(path))


def test_smollm2_ids_equal_an_independent_bpe_and_decode_back(smollm2):
  golden = json.loads((GOLDEN / "smollm2_tokens.json").read_text())["ids"]
  assert len(TEXTS) == len(golden) == 200
  for text, ids in zip(TEXTS, golden, strict=True):
    assert smollm2.encode(text) == ids, text
    assert smollm2.decode(ids, skip_special=False) == text


def test_smollm2_gives_every_digit_a_token_of_its_own(smollm2):
  for text in ("1234567890", "x12 345,678.9", "10 + 25 = 35\n"):
    pieces = [smollm2.token_texts[i] for i in smollm2.encode(text)]
    assert all(
      piece.isdigit() and len(piece) == 1 for piece in pieces if any(map(str.isdigit, piece))
    )
    assert "".join(pieces) == text


def test_smollm2_chat_equals_transformers_rendering(smollm2):
  chats = json.loads((GOLDEN / "smollm2_tokens.json").read_text())["chats"]
  assert len(chats) == 4
  for chat in chats:
    assert smollm2.chat(chat["messages"], chat["prompt"]) == chat["text"]
  assert smollm2.eos_ids == (2,) and smollm2.token_texts[2] == "<|im_end|>"


def test_stop_ids_of_a_newline_are_exactly_the_tokens_that_decode_to_one(smollm2):
  found = smollm2.stop_ids(["\n"])
  brute = {i for i in range(smollm2.vocab_size) if "\n" in smollm2.decode([i], skip_special=False)}
  assert set(found) == brute | {2} and len(brute) > 10
  assert smollm2.stop_ids([]) == smollm2.eos_ids
  with pytest.raises(UserError, match="empty string"):
    smollm2.stop_ids([""])


def test_ids_past_the_vocabulary_are_skipped_by_decode(smollm2):
  assert smollm2.decode([*smollm2.encode("ab"), 60000, -1]) == "ab"


# ---- other kinds of GGUF vocabulary --------------------------------------------------------------


def byte_fields(pre: str | None, merges=(), **changes) -> dict:
  """GGUF metadata of a vocabulary of bytes, a few merges, and two control tokens."""
  from grpo_jax.models.tokenizer import _byte_of

  tokens = [*_byte_of(), *(m.replace(" ", "") for m in merges), "<s>", "</s>"]
  fields = {
    "model": "gpt2",
    "tokens": tokens,
    "merges": list(merges),
    "token_type": [1] * (len(tokens) - 2) + [3, 3],
    "bos_token_id": len(tokens) - 2,
    "eos_token_id": len(tokens) - 1,
  }
  fields |= {"pre": pre} if pre else {}
  return {f"tokenizer.ggml.{k}": v for k, v in (fields | changes).items() if v is not None}


@pytest.mark.parametrize(
  "pre, text, expected",
  [
    ("gpt-2", "I'm 12345+6\n\n  x", "I|'m| 12345|+|6|\n\n | x"),
    ("smollm", "I'm 12345+6\n\n  x", "I|'m| |1|2|3|4|5|+|6|\n\n | x"),
    ("llama-bpe", "I'M 12345+6\n\n  x.y", "I|'M| |123|45|+|6|\n\n| | x|.y"),
    ("qwen2", "I'M 12345+6\n\n  x.y", "I|'M| |1|2|3|4|5|+|6|\n\n| | x|.y"),
    ("default", "a== 12345!", "a|==| |123|45|!"),
    (None, "a== 12345!", "a|==| |123|45|!"),
  ],
)
def test_texts_are_cut_by_the_rule_of_the_pre_tokenizer(pre, text, expected):
  cut = from_gguf(byte_fields(pre), "m.gguf").backend.tokenizer.pre_tokenizer
  assert [text[a:b] for _, (a, b) in cut.pre_tokenize_str(text)] == expected.split("|")


@pytest.mark.parametrize("pre, whole", [("llama-bpe", True), ("gpt-2", False)])
def test_llama_3_takes_a_word_of_the_vocabulary_whole_even_if_no_merge_leads_to_it(pre, whole):
  fields = byte_fields(pre, add_bos_token=False)
  fields["tokenizer.ggml.tokens"].append("xyz")
  fields["tokenizer.ggml.token_type"].append(1)
  assert len(from_gguf(fields, "m.gguf").encode("xyz")) == (1 if whole else 3)


def test_an_unknown_pre_tokenizer_or_model_is_refused_by_name():
  with pytest.raises(UserError, match=r"tokenizer\.ggml\.pre='deepseek-llm'"):
    from_gguf(byte_fields("deepseek-llm"), "m.gguf")
  with pytest.raises(UserError, match=r"tokenizer\.ggml\.model='t5'"):
    from_gguf(byte_fields("gpt-2", model="t5"), "m.gguf")
  with pytest.raises(UserError, match=r"eos_token_id is missing"):
    from_gguf(byte_fields("gpt-2", eos_token_id=None), "m.gguf")


@pytest.mark.parametrize(
  "pre, flag, added",
  [("llama-bpe", None, 1), ("gpt-2", None, 0), ("gpt-2", True, 1), ("llama-bpe", False, 0)],
)
def test_bos_is_added_once_and_only_where_the_file_says(pre, flag, added):
  tokenizer = from_gguf(byte_fields(pre, add_bos_token=flag), "m.gguf")
  assert tokenizer.encode("a").count(tokenizer.bos_id) == added
  assert tokenizer.encode("<s>a") == [tokenizer.bos_id, *tokenizer.encode("a")[added:]]


def test_exported_tokenizer_json_is_read_back_the_same(tmp_path):
  fields = byte_fields("llama-bpe", merges=["a b", "ab c"]) | {"tokenizer.chat_template": "{{1}}"}
  tokenizer = from_gguf(fields, "m.gguf")
  tokenizer.save(tmp_path)
  again = hf_tokenizer.from_folder(tmp_path)
  assert again.special == tokenizer.special and again.token_texts == tokenizer.token_texts
  for text in (*TEXTS, "abcab</s>abc<s>"):
    assert again.encode(text) == tokenizer.encode(text)


# ---- sentencepiece -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proto() -> bytes:
  rng = random.Random(0)
  text = "the sum of two numbers is four and seven plus nine equals a small value x y"
  words = text.split()
  lines = (" ".join(rng.choices(words, k=12)) + f" {rng.randint(0, 999)}" for _ in range(400))
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=out,
    vocab_size=340,
    model_type="bpe",
    byte_fallback=True,
    split_digits=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  return out.getvalue()


def folder_of(proto: bytes, path: Path) -> Path:
  (path / "tokenizer.model").write_bytes(proto)
  own = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
  (path / "tokenizer_config.json").write_text(json.dumps(own))
  return path


def test_sentencepiece_folder_encodes_as_the_library_does_and_decodes_back(proto, tmp_path):
  tokenizer = hf_tokenizer.from_folder(folder_of(proto, tmp_path))
  library = sentencepiece.SentencePieceProcessor(model_proto=proto)
  assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
  for text in (t for t in TEXTS if "\u0000" not in t):
    ids = tokenizer.encode(text)
    assert ids == [1, *library.encode(text)]
    assert tokenizer.decode(ids) == text


def test_sentencepiece_control_tokens_in_a_text_become_their_ids(proto, tmp_path):
  tokenizer = hf_tokenizer.from_folder(folder_of(proto, tmp_path))
  ids = tokenizer.encode("<s>the sum</s>two")
  assert ids[0] == 1 and ids.count(1) == 1 and ids.count(2) == 1
  assert tokenizer.decode(ids, skip_special=False) == "<s>the sum</s>two"


def test_sentencepiece_pieces_join_to_the_text_and_newline_is_a_stop(proto, tmp_path):
  tokenizer = hf_tokenizer.from_folder(folder_of(proto, tmp_path))
  ids = tokenizer.encode("the sum\n= 4")[1:]
  assert "".join(tokenizer.token_texts[i] for i in ids) == " the sum\n= 4"
  newline = [i for i in ids if tokenizer.token_texts[i] == "\n"]
  assert len(newline) == 1 and set(tokenizer.stop_ids(["\n"])) == {2, *newline}


def test_sentencepiece_export_is_read_back_the_same(proto, tmp_path):
  tokenizer = hf_tokenizer.from_folder(folder_of(proto, tmp_path))
  (tmp_path / "out").mkdir()
  tokenizer.save(tmp_path / "out")
  again = hf_tokenizer.from_folder(tmp_path / "out")
  assert again.special == tokenizer.special
  assert [again.encode(t) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS]


def test_a_gguf_vocabulary_of_pieces_and_scores_encodes_as_its_sentencepiece_model(proto):
  library = sentencepiece.SentencePieceProcessor(model_proto=proto)
  pieces = range(library.vocab_size())
  kind = lambda i: (
    2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1
  )
  fields = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [library.id_to_piece(i) for i in pieces],
    "tokenizer.ggml.scores": [library.get_score(i) for i in pieces],
    "tokenizer.ggml.token_type": [kind(i) for i in pieces],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
  }
  tokenizer = from_gguf(fields, "m.gguf")
  for text in (t for t in TEXTS if "\u0000" not in t):
    assert tokenizer.encode(text) == [1, *library.encode(text)], text
  plain = from_gguf(fields | {"tokenizer.ggml.add_space_prefix": False}, "m.gguf")
  assert plain.token_texts[plain.encode("the")[1]][0] == "t"


# ---- chat templates ------------------------------------------------------------------------------


def with_template(template: str | None, proto: bytes) -> Tokenizer:
  backend = SentencePieceBackend(proto)
  return Tokenizer(backend, Special(eos_ids=(2,), pad_id=0, bos_id=1, chat_template=template))


def test_chat_template_knows_the_names_that_templates_use(proto):
  text = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ {'a': '<é>'} | tojson }}"
  assert (
    with_template(text, proto).chat([{"role": "user", "content": "x"}]) == '<s>x</s>{"a": "<é>"}'
  )


@pytest.mark.parametrize(
  "template, message",
  [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{% for %}", "chat template"),
    (None, "no chat template"),
  ],
)
def test_a_chat_template_that_fails_or_attacks_gives_one_line(template, message, proto):
  with pytest.raises(UserError, match=message) as error:
    with_template(template, proto).chat([{"role": "user", "content": "x"}])
  assert "\n" not in str(error.value)


def test_a_special_id_outside_the_vocabulary_is_refused(proto):
  with pytest.raises(UserError, match="99999"):
    Tokenizer(SentencePieceBackend(proto), Special(eos_ids=(99999,), pad_id=0))


def test_ids_of_a_padded_model_vocabulary_have_empty_texts_and_a_smaller_model_is_refused(proto):
  backend, special = SentencePieceBackend(proto), Special(eos_ids=(2,), pad_id=0)
  tokenizer = Tokenizer(backend, special, rows=backend.size + 3)
  assert tokenizer.token_texts[-3:] == ("", "", "") and tokenizer.vocab_size == backend.size
  assert max(tokenizer.stop_ids(["e"])) < backend.size
  with pytest.raises(UserError, match="the model only 5"):
    Tokenizer(backend, special, rows=5)
