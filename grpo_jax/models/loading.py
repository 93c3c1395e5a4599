"""A pretrained model by one word: `load("smollm2")`, a .gguf file, a folder, or a hub id."""

import re
from pathlib import Path

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.models import embedded, gguf_file
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.gguf_tokenizer import from_gguf
from grpo_jax.models.tokenizer import Tokenizer


def load(spec: str, dtype=np.float32) -> tuple[ModelConfig, dict, Tokenizer]:
  """Config, parameters (numpy arrays of `dtype`, tree of `ModelConfig`) and tokenizer of `spec`.

  "smollm2": the embedded model, fetched on the first call. A path that ends in .gguf; a folder
  with config.json, *.safetensors and tokenizer files; "organization/name": a snapshot of the
  Hugging Face hub, which needs `huggingface_hub` and a network or its cache.
  """
  if spec == "smollm2":
    return _gguf(embedded.fetch(), dtype)
  path = Path(spec).expanduser()
  if spec.endswith(".gguf"):
    return _gguf(path, dtype)
  if spec and path.is_dir():
    return _folder(path, dtype)
  if spec and path.exists():
    raise UserError(f"model={spec!r} is a file, but neither a .gguf file nor a model folder")
  if re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and not spec.startswith((".", "/")):
    return _folder(_hub(spec), dtype)
  raise UserError(
    f"model={spec!r}: no such path; give 'smollm2', a .gguf file, a folder, or 'organization/name'"
  )


def _gguf(path: Path, dtype) -> tuple[ModelConfig, dict, Tokenizer]:
  config, params, fields = gguf_file.load(path, dtype)
  return config, params, _fitting(from_gguf(fields, str(path)), config, path)


def _folder(path: Path, dtype) -> tuple[ModelConfig, dict, Tokenizer]:
  from grpo_jax.models import hf_tokenizer, safetensors_file

  config, params = safetensors_file.load(path, dtype)
  return config, params, _fitting(hf_tokenizer.from_folder(path), config, path)


def _fitting(tokenizer: Tokenizer, config: ModelConfig, path: Path) -> Tokenizer:
  try:
    return Tokenizer(tokenizer.backend, tokenizer.special, rows=config.vocab_size)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error


def _hub(spec: str) -> Path:
  try:
    from huggingface_hub import snapshot_download
  except ImportError as error:
    raise UserError(
      f"model={spec!r}: no such folder, and hub ids need `pip install huggingface_hub`"
    ) from error
  try:
    patterns = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
    return Path(snapshot_download(spec, allow_patterns=patterns))
  except Exception as error:  # the hub raises a dozen types: HTTP, offline mode, wrong name, disk
    reason = (
      str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    )
    raise UserError(
      f"model={spec!r}: no such folder, and the hub gave: {reason}; check the name and the network,"
      " or download the folder elsewhere and give its path"
    ) from error
