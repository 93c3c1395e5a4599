"""GGUF files: other architectures than the embedded one, and files that must be refused."""

import dataclasses

import gguf
import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.models import gguf_file, loading, weights
from grpo_jax.models.config import ModelConfig, RopeScaling

LLAMA = ModelConfig(
  vocab_size=40,
  hidden_size=32,
  intermediate_size=64,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  norm_eps=1e-5,
  max_position=128,
)
SCALED = dataclasses.replace(
  LLAMA,
  head_dim=32,
  rope_theta=5e5,
  rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
  tie_embeddings=True,
)
QWEN2 = dataclasses.replace(LLAMA, qkv_bias=True, tie_embeddings=True, rope_theta=1e6)
QWEN3 = dataclasses.replace(LLAMA, qk_norm=True, head_dim=16, norm_eps=1e-6)
CASES = {"llama": LLAMA, "llama3": SCALED, "qwen2": QWEN2, "qwen3": QWEN3}


def random_params(config: ModelConfig) -> dict:
  rng = np.random.default_rng(0)
  draw = lambda shape: rng.standard_normal(shape).astype(np.float32)
  tree = weights.shapes(config)
  layers = {name: draw(shape) for name, shape in tree.pop("layers").items()}
  return {name: draw(shape) for name, shape in tree.items()} | {"layers": layers}


def llama_cpp_permute(matrix: np.ndarray, heads: int) -> np.ndarray:
  """convert_hf_to_gguf.py's LlamaModel.permute, element by element."""
  rows, half = matrix.shape[0], matrix.shape[0] // heads // 2
  out = np.empty_like(matrix)
  for head in range(heads):
    for pair in range(half):
      for side in range(2):
        out[head * 2 * half + 2 * pair + side] = matrix[head * 2 * half + side * half + pair]
  assert rows == heads * 2 * half
  return out


def llama3_divisors(config: ModelConfig) -> np.ndarray:
  """convert_hf_to_gguf.py's table, one frequency after the other."""
  s, out = config.rope_scaling, []
  low, high = (s.original_max_position / f for f in (s.low_freq_factor, s.high_freq_factor))
  for i in range(0, config.head_dim, 2):
    wavelength = 2 * np.pi * config.rope_theta ** (i / config.head_dim)
    if wavelength < high:
      out.append(1.0)
    elif wavelength > low:
      out.append(s.factor)
    else:
      smooth = (s.original_max_position / wavelength - s.low_freq_factor) / (
        s.high_freq_factor - s.low_freq_factor
      )
      out.append(1 / ((1 - smooth) / s.factor + smooth))
  return np.array(out, np.float32)


def write(path, arch: str, config: ModelConfig, params: dict, *, extra=(), quant=None, drop=()):
  writer = gguf.GGUFWriter(path, arch)
  writer.add_block_count(config.num_layers)
  writer.add_context_length(config.max_position)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  for key, value in extra:
    writer.add_key_value(key, value, gguf.GGUFValueType.UINT32)
  tensors = {weights.NAMES[n][weights.GGUF]: v for n, v in params.items() if n != "layers"}
  for name, stacked in params["layers"].items():
    for i, value in enumerate(stacked):
      stored = np.ascontiguousarray(value.T)
      if arch == "llama" and name in ("q", "k"):
        stored = llama_cpp_permute(stored, config.num_heads if name == "q" else config.num_kv_heads)
      tensors[weights.LAYER_NAMES[name][weights.GGUF].format(i)] = stored
  if config.rope_scaling is not None:
    tensors["rope_freqs.weight"] = llama3_divisors(config)
  for name, value in tensors.items():
    if name in drop:
      continue
    if quant is not None and value.ndim == 2:
      writer.add_tensor(name, gguf.quantize(value, quant), raw_dtype=quant)
    else:
      writer.add_tensor(name, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def assert_same(a: dict, b: dict, atol: float):
  assert a.keys() == b.keys() and a["layers"].keys() == b["layers"].keys()
  for name, value in (a | a["layers"]).items():
    if name != "layers":
      np.testing.assert_allclose(value, (b | b["layers"])[name], atol=atol, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_written_file_loads_to_its_config_and_parameters(case, tmp_path):
  config = CASES[case]
  params = random_params(config)
  path = write(
    tmp_path / "m.gguf", case.removesuffix("3") if "ll" in case else case, config, params
  )
  loaded_config, loaded, _ = gguf_file.load(path)
  assert loaded_config == config
  assert_same(loaded, params, atol=0)


@pytest.mark.parametrize(
  "quant, atol", [("F16", 4e-3), ("Q8_0", 2e-2), ("Q4_1", 0.3), ("BF16", 2e-2)]
)
def test_quantized_matrices_are_dequantized_close_to_the_original(quant, atol, tmp_path):
  params = random_params(LLAMA)
  kind = gguf.GGMLQuantizationType[quant]
  path = write(tmp_path / "m.gguf", "llama", LLAMA, params, quant=kind)
  assert_same(gguf_file.load(path)[1], params, atol=atol)


def test_dtype_of_the_loaded_parameters_is_the_one_asked_for(tmp_path):
  path = write(tmp_path / "m.gguf", "llama", LLAMA, random_params(LLAMA))
  params = gguf_file.load(path, "float16")[1]
  assert params["embed"].dtype == params["layers"]["q"].dtype == np.float16


def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path):
  path = write(tmp_path / "m.gguf", "llama", LLAMA, random_params(LLAMA))
  whole = path.read_bytes()
  for keep in (5, 23, 60, 400, 1500, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:keep])
    with pytest.raises(UserError, match="truncated") as error:
      gguf_file.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 some other file", b"\0" * 100])
def test_a_file_that_is_no_gguf_is_refused(content, tmp_path):
  path = tmp_path / "m.gguf"
  path.write_bytes(content)
  with pytest.raises(UserError, match="not a GGUF file"):
    gguf_file.load(path)


def test_a_missing_file_is_refused_with_its_path(tmp_path):
  with pytest.raises(UserError, match=r"nowhere\.gguf: no such GGUF file"):
    loading.load(str(tmp_path / "nowhere.gguf"))


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
  path = write(tmp_path / "m.gguf", "gemma3", LLAMA, random_params(LLAMA))
  with pytest.raises(UserError, match=r"general\.architecture='gemma3'"):
    gguf_file.load(path)


@pytest.mark.parametrize(
  "key, value",
  [("llama.expert_count", 8), ("llama.attention.sliding_window", 4096), ("llama.new_thing", 1)],
)
def test_metadata_that_the_decoder_does_not_compute_is_refused_by_name(key, value, tmp_path):
  path = write(tmp_path / "m.gguf", "llama", LLAMA, random_params(LLAMA), extra=[(key, value)])
  with pytest.raises(UserError, match=key.replace(".", r"\.")):
    gguf_file.load(path)


def test_a_missing_and_an_unread_tensor_are_refused_by_name(tmp_path):
  params = random_params(LLAMA)
  path = write(tmp_path / "a.gguf", "llama", LLAMA, params, drop=["blk.1.ffn_up.weight"])
  with pytest.raises(UserError, match=r"'blk\.1\.ffn_up\.weight' is missing"):
    gguf_file.load(path)
  params["layers"]["v_bias"] = np.ones((2, 16), np.float32)
  path = write(tmp_path / "b.gguf", "llama", LLAMA, params)
  with pytest.raises(UserError, match=r"'blk\.0\.attn_v\.bias' has no place"):
    gguf_file.load(path)


def test_a_rope_table_that_is_not_llama_3_is_refused(tmp_path):
  odd = dataclasses.replace(SCALED, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 1024))
  path = write(tmp_path / "m.gguf", "llama", odd, random_params(odd))
  with pytest.raises(UserError, match=r"rope_freqs\.weight"):
    gguf_file.load(path)
