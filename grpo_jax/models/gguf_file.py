"""Llama, Qwen2 and Qwen3 decoders from GGUF files, any quantization that `gguf` can undo.

The header is parsed here: the package's reader makes several numpy views for every one of the
hundred thousand strings of a vocabulary, which takes longer than all the weights. Format:
github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.models import weights
from grpo_jax.models.config import ModelConfig, RopeScaling

_SCALARS = {
  0: "B",
  1: "b",
  2: "H",
  3: "h",
  4: "I",
  5: "i",
  6: "f",
  7: "?",
  10: "Q",
  11: "q",
  12: "d",
}
_STRING, _ARRAY = 8, 9

# Keys below "<architecture>." that change what a model computes and that `_config` reads.
_READ = {
  "block_count",
  "context_length",
  "embedding_length",
  "feed_forward_length",
  "attention.head_count",
  "attention.head_count_kv",
  "attention.key_length",
  "attention.value_length",
  "attention.layer_norm_rms_epsilon",
  "rope.freq_base",
  "rope.dimension_count",
  "rope.scaling.type",
  "vocab_size",
}
# Values under which these keys change nothing.
_NEUTRAL = {
  "expert_count": (0,),
  "expert_used_count": (0,),
  "attention.sliding_window": (0,),
  "attention.causal": (True,),
  "use_parallel_residual": (False,),
  "rope.scaling.finetuned": (False, True),
}
_ARCHITECTURES = ("llama", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where one tensor lies; `shape` is numpy's order, rows first."""

  shape: tuple[int, ...]
  kind: int
  offset: int


@dataclasses.dataclass(frozen=True)
class Header:
  path: Path
  fields: dict[str, Any]
  tensors: dict[str, Stored]


class _Cursor:
  def __init__(self, data, path: Path):
    self.data, self.at, self.path = data, 0, path

  def take(self, form: str, count: int = 1) -> Any:
    size = struct.calcsize("<" + form) * count
    if size > len(self.data) - self.at:
      raise UserError(f"{self.path}: the GGUF file is truncated inside its header; fetch it again")
    values = struct.unpack_from(f"<{count}{form}", self.data, self.at)
    self.at += size
    return values if count != 1 else values[0]

  def string(self) -> str:
    size = self.take("Q")
    if size > len(self.data) - self.at:
      raise UserError(f"{self.path}: the GGUF file is truncated inside its header; fetch it again")
    self.at += size
    return self.data[self.at - size : self.at].decode("utf-8", errors="replace")

  def value(self, kind: int) -> Any:
    if kind == _STRING:
      return self.string()
    if kind == _ARRAY:
      inner, count = self.take("I"), self.take("Q")
      if inner in _SCALARS:
        values = self.take(_SCALARS[inner], count)
        return [values] if count == 1 else list(values)
      return [self.value(inner) for _ in range(count)]
    if kind not in _SCALARS:
      raise UserError(f"{self.path}: metadata of unknown type {kind}; the GGUF file is damaged")
    return self.take(_SCALARS[kind])


def read_header(path: str | Path) -> Header:
  """Metadata and tensor table. Missing, foreign and truncated files raise UserError."""
  path = Path(path)
  if not path.is_file():
    raise UserError(f"{path}: no such GGUF file")
  with path.open("rb") as file:
    if file.read(4) != b"GGUF":
      raise UserError(f"{path}: not a GGUF file (it does not start with 'GGUF')")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  with data:
    return _parse(_Cursor(data, path), path)


def _parse(cursor: _Cursor, path: Path) -> Header:
  from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

  cursor.at = 4
  version = cursor.take("I")
  if version not in (2, 3):
    raise UserError(f"{path}: GGUF version {version} is not supported, only 2 and 3")
  tensor_count, field_count = cursor.take("Q"), cursor.take("Q")
  fields = {}
  for _ in range(field_count):
    key = cursor.string()
    fields[key] = cursor.value(cursor.take("I"))
  found = []
  for _ in range(tensor_count):
    name, rank = cursor.string(), cursor.take("I")
    shape = tuple(cursor.take("Q") for _ in range(rank))[::-1]
    found.append((name, shape, cursor.take("I"), cursor.take("Q")))
  align = fields.get("general.alignment", 32)
  start = math.ceil(cursor.at / align) * align
  tensors = {}
  for name, shape, kind, offset in found:
    if kind not in GGMLQuantizationType._value2member_map_:
      raise UserError(f"{path}: tensor {name!r} has unknown quantization {kind}; update `gguf`")
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    end = start + offset + math.prod(shape) // block * size
    if end > len(cursor.data):
      raise UserError(
        f"{path}: truncated: tensor {name!r} ends at byte {end}, the file has {len(cursor.data)};"
        " fetch it again"
      )
    tensors[name] = Stored(shape, kind, start + offset)
  return Header(path, fields, tensors)


def config_of(header: Header) -> ModelConfig:
  """ModelConfig of the file; an architecture or setting that the decoder lacks raises UserError."""
  path, fields = header.path, header.fields
  arch = fields.get("general.architecture")
  if arch not in _ARCHITECTURES:
    raise UserError(
      f"{path}: general.architecture={arch!r} is not supported, only {', '.join(_ARCHITECTURES)}"
    )
  own = {k[len(arch) + 1 :]: v for k, v in fields.items() if k.startswith(arch + ".")}
  for key, value in own.items():
    if isinstance(value, list):
      raise UserError(f"{path}: {arch}.{key} differs between layers, which is not supported")
    if key not in _READ and value not in _NEUTRAL.get(key, ()):
      raise UserError(f"{path}: {arch}.{key}={value!r} is read by nothing; model not supported")
  if own.get("rope.scaling.type", "none") != "none":
    raise UserError(f"{path}: {arch}.rope.scaling.type={own['rope.scaling.type']!r} not supported")

  def need(key: str):
    if key not in own:
      raise UserError(f"{path}: metadata {arch}.{key} is missing")
    return own[key]

  heads, hidden = need("attention.head_count"), need("embedding_length")
  head_dim = own.get("attention.key_length", hidden // heads)
  for key in ("rope.dimension_count", "attention.value_length"):
    if own.get(key, head_dim) != head_dim:
      raise UserError(f"{path}: {arch}.{key}={own[key]} differs from the head size {head_dim}")
  if "token_embd.weight" not in header.tensors:
    raise UserError(f"{path}: tensor 'token_embd.weight' is missing; the file is incomplete")
  theta = _short(own.get("rope.freq_base", 10000.0))
  return ModelConfig(
    vocab_size=header.tensors["token_embd.weight"].shape[0],
    hidden_size=hidden,
    intermediate_size=need("feed_forward_length"),
    num_layers=need("block_count"),
    num_heads=heads,
    num_kv_heads=own.get("attention.head_count_kv", heads),
    head_dim=head_dim,
    rope_theta=theta,
    rope_scaling=_rope_scaling(header, theta, head_dim),
    norm_eps=_short(need("attention.layer_norm_rms_epsilon")),
    max_position=need("context_length"),
    tie_embeddings="output.weight" not in header.tensors,
    qkv_bias="blk.0.attn_q.bias" in header.tensors,
    qk_norm="blk.0.attn_q_norm.weight" in header.tensors,
  )


def load(path: str | Path, dtype=np.float32) -> tuple[ModelConfig, dict, dict[str, Any]]:
  """Config, parameters (numpy, dequantized in float32) and metadata of a GGUF file."""
  header = read_header(path)
  config = config_of(header)
  raw = np.memmap(header.path, np.uint8, mode="r")
  # llama.cpp rotates neighbouring pairs for "llama" and permutes q and k to suit at conversion;
  # the Qwen architectures rotate halves there too, and stay as they were.
  heads = {}
  if header.fields["general.architecture"] == "llama":
    heads = {".attn_q.weight": config.num_heads, ".attn_k.weight": config.num_kv_heads}

  def read(name: str) -> np.ndarray:
    value = _dequantize(raw, header.tensors[name])
    for suffix, count in heads.items():
      if name.endswith(suffix):
        return _halves(value, count)
    return value

  names = set(header.tensors) - {"rope_freqs.weight"}
  params = weights.assemble(config, weights.GGUF, names, read, np.dtype(dtype), str(header.path))
  return config, params, header.fields


def _halves(value: np.ndarray, heads: int) -> np.ndarray:
  """Rows of a head from llama.cpp's (x0, y0, x1, y1 ...) to (x0, x1, ..., y0, y1, ...)."""
  rows, columns = value.shape
  pairs = value.reshape(heads, rows // heads // 2, 2, columns)
  return pairs.swapaxes(1, 2).reshape(rows, columns)


def _dequantize(raw: np.ndarray, stored: Stored) -> np.ndarray:
  from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

  kind = GGMLQuantizationType(stored.kind)
  block, size = GGML_QUANT_SIZES[kind]
  count = math.prod(stored.shape)
  data = raw[stored.offset : stored.offset + count // block * size]
  if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
    data = data.view(np.float32 if kind == GGMLQuantizationType.F32 else np.float16)
    return data.reshape(stored.shape).astype(np.float32, copy=False)
  rows = stored.shape[:-1]
  return dequantize(data.reshape(*rows, -1), kind).reshape(stored.shape)


def _rope_scaling(header: Header, theta: float, head_dim: int) -> RopeScaling | None:
  """Llama 3's scaling from the table of divisors, the only thing that a GGUF keeps of it.

  Only `factor` can be read off the table (its last entry). The other three numbers are those of
  every Llama 3.1 to 3.3 release; the table that they give must equal the file's.
  """
  if "rope_freqs.weight" not in header.tensors:
    return None
  raw = np.memmap(header.path, np.uint8, mode="r")
  table = _dequantize(raw, header.tensors["rope_freqs.weight"])
  if (table == 1).all():
    return None
  scaling = RopeScaling(_short(table.max()), 1.0, 4.0, 8192)
  wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  smooth = (scaling.original_max_position / wavelength - 1.0) / 3.0
  blend = 1 / ((1 - smooth) / scaling.factor + smooth)
  expected = np.where(smooth > 1, 1.0, np.where(smooth < 0, scaling.factor, blend))
  if table.shape != expected.shape or np.abs(table / expected - 1).max() > 1e-4:
    raise UserError(
      f"{header.path}: rope_freqs.weight is not the Llama 3 table of factor {scaling.factor};"
      " load the model from its safetensors instead"
    )
  return scaling


def _short(value) -> float:
  """The shortest decimal that rounds to this float32: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(value)))
