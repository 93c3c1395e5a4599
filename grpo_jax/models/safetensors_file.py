"""Model folders of transformers: config.json, *.safetensors and tokenizer files, both ways."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.models import hf_config, weights
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.names import one_of

# The package's numpy side does not know bfloat16, in which most models are stored.
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}


def load(folder: str | Path, dtype=np.float32) -> tuple[ModelConfig, dict]:
  """Config and parameters (numpy, of `dtype`) of a folder; UserError says what is wrong with it."""
  folder = Path(folder)
  config = hf_config.from_json(read_json(folder / "config.json"), str(folder / "config.json"))
  views = {}
  for path in _files(folder):
    views |= _views(path)
  # Buffers that old versions of transformers saved; they follow from the config.
  views = {k: v for k, v in views.items() if not k.endswith("rotary_emb.inv_freq")}
  head, embed = (weights.NAMES[name][weights.SAFETENSORS] for name in ("head", "embed"))
  if config.tie_embeddings and head in views:
    if embed in views and not np.array_equal(views[head], views[embed]):
      raise UserError(f"{folder}: tie_word_embeddings is true, yet {head} differs from {embed}")
    del views[head]
  names = set(views)
  params = weights.assemble(
    config, weights.SAFETENSORS, names, views.__getitem__, np.dtype(dtype), str(folder)
  )
  return config, params


def read_json(path: Path) -> dict:
  if not path.is_file():
    raise UserError(f"{path}: no such file; a model folder needs config.json and *.safetensors")
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path}: not valid JSON ({error})") from error


def _files(folder: Path) -> list[Path]:
  index = folder / "model.safetensors.index.json"
  if (folder / "model.safetensors").is_file():
    return [folder / "model.safetensors"]
  if index.is_file():
    files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    for path in files:
      if not path.is_file():
        raise UserError(f"{path}: named by {index.name} but missing; the download is incomplete")
    return files
  files = sorted(folder.glob("*.safetensors"))
  if len(files) != 1:
    raise UserError(
      f"{folder}: expected model.safetensors, an index, or one *.safetensors; found {len(files)}"
    )
  return files


def _views(path: Path) -> dict[str, np.ndarray]:
  """Memory-mapped tensors of one file: 8 bytes of header size, JSON, then raw numbers."""
  raw = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
  size = int(raw[:8].view("<u8")[0]) if len(raw) >= 8 else -1
  if not 0 < size <= len(raw) - 8:
    raise UserError(f"{path}: truncated or not a safetensors file; fetch it again")
  try:
    header = json.loads(raw[8 : 8 + size].tobytes())
  except ValueError as error:
    raise UserError(f"{path}: its header is not JSON; not a safetensors file") from error
  views = {}
  for name, entry in header.items():
    if name == "__metadata__":
      continue
    if entry["dtype"] not in _DTYPES:
      raise UserError(f"{path}: tensor {name!r} is stored as {entry['dtype']}, not supported")
    begin, end = (8 + size + offset for offset in entry["data_offsets"])
    if end > len(raw):
      raise UserError(f"{path}: truncated: tensor {name!r} ends at byte {end} of {len(raw)}")
    views[name] = raw[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
  return views


def save(
  folder: str | Path,
  config: ModelConfig,
  params: dict,
  tokenizer: Tokenizer | None = None,
  dtype: str = "float32",
) -> Path:
  """Writes a folder that `load` and transformers read; `dtype` float32, float16 or bfloat16.

  The folder appears whole or not at all, and an existing one is never written over (UserError).
  """
  from safetensors.numpy import save_file

  kinds = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
  one_of("export dtype", dtype, kinds)
  folder = Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{folder}: exists and is not empty; name another folder for the export")
  folder.parent.mkdir(parents=True, exist_ok=True)
  ids = {} if tokenizer is None else _token_ids(tokenizer)
  scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
  try:
    tensors = weights.disassemble(config, params, np.dtype(kinds[dtype]))
    save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
    _write_json(scratch / "config.json", hf_config.to_json(config) | ids | {"torch_dtype": dtype})
    if tokenizer is not None:
      _write_json(scratch / "generation_config.json", ids)
      tokenizer.save(scratch)
    scratch.chmod(0o755)  # mkdtemp makes it private
    os.replace(scratch, folder)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return folder


def _token_ids(tokenizer: Tokenizer) -> dict:
  eos = list(tokenizer.eos_ids)
  return {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": eos if len(eos) > 1 else eos[0],
    "pad_token_id": tokenizer.pad_id,
  }


def _write_json(path: Path, value: dict) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
