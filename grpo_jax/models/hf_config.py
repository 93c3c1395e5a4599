"""config.json of transformers <-> ModelConfig, for model types llama, qwen2 and qwen3.

A field that nothing here reads may change what the model computes, so it is an error unless it is
known to be inert. A field with a value that the decoder cannot compute is an error too.
"""

from typing import Any

from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig, RopeScaling

# fmt: off
# Read by nobody, and without effect on logits at inference.
_INERT = {
  "architectures", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache",
  "initializer_range", "attention_dropout", "pretraining_tp", "bos_token_id", "eos_token_id",
  "pad_token_id", "unk_token_id", "is_llama_config", "transformers.js_config", "unsloth_fixed",
  "unsloth_version", "_attn_implementation", "_attn_implementation_autoset",
  "output_hidden_states", "output_attentions", "return_dict", "chunk_size_feed_forward",
  "is_encoder_decoder", "id2label", "label2id", "problem_type", "max_window_layers", "max_length",
  "min_length", "do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty",
  "tokenizer_class", "task_specific_params", "finetuning_task", "prefix", "torchscript",
}
# Fields that the decoder can only compute with one of these values.
_ONLY = {
  "hidden_act": ("silu", "swish"),
  "attention_bias": (False, None),
  "mlp_bias": (False, None),
  "use_sliding_window": (False, None),
  "rope_interleaved": (False, None),
  "partial_rotary_factor": (1.0, None),
  "quantization_config": (None,),
}
_READ = {
  "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
  "num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling",
  "rope_parameters", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
  "layer_types", "sliding_window",
}
# fmt: on
# What transformers takes for a field that is absent, where that depends on the family.
_MAX_POSITION = {"llama": 2048, "qwen2": 32768, "qwen3": 32768}
_ROPE_LLAMA3: tuple[str, ...] = (
  "factor",
  "low_freq_factor",
  "high_freq_factor",
  "original_max_position_embeddings",
)


def from_json(raw: dict[str, Any], source: str = "config.json") -> ModelConfig:
  """ModelConfig of a parsed config.json; UserError names the first field that does not fit."""
  kind = raw.get("model_type")
  if kind not in _MAX_POSITION:
    raise UserError(f"{source}: model_type={kind!r} is not supported, only llama, qwen2, qwen3")
  _refuse_unknown(raw, source)

  def need(key: str) -> int:
    if not isinstance(raw.get(key), int) or raw[key] <= 0:
      raise UserError(f"{source}: {key}={raw.get(key)!r} must be a positive integer")
    return raw[key]

  heads, hidden = need("num_attention_heads"), need("hidden_size")
  if kind == "qwen3":
    head_dim = raw.get("head_dim", 128)
  else:
    head_dim = raw.get("head_dim") or hidden // heads
  if kind == "llama" and raw.get("num_key_value_heads") is None:
    raw = raw | {"num_key_value_heads": heads}
  theta, scaling = _rope(raw, source)
  return ModelConfig(
    vocab_size=need("vocab_size"),
    hidden_size=hidden,
    intermediate_size=need("intermediate_size"),
    num_layers=need("num_hidden_layers"),
    num_heads=heads,
    num_kv_heads=need("num_key_value_heads"),
    head_dim=head_dim,
    rope_theta=theta,
    rope_scaling=scaling,
    norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
    max_position=int(raw.get("max_position_embeddings", _MAX_POSITION[kind])),
    tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
    qkv_bias=kind == "qwen2",
    qk_norm=kind == "qwen3",
  )


def _refuse_unknown(raw: dict[str, Any], source: str) -> None:
  for key, value in raw.items():
    if key in _ONLY:
      if value not in _ONLY[key]:
        raise UserError(
          f"{source}: {key}={str(value)[:60]!s} is not supported, only {_ONLY[key][0]!r}"
        )
    elif key not in _READ | _INERT:
      raise UserError(
        f"{source}: nothing reads {key}={str(value)[:60]!s}; it may change what the model computes."
        " If it does not, remove it from the file"
      )
  layers = set(raw.get("layer_types") or ())
  if layers - {"full_attention"}:
    raise UserError(f"{source}: layer_types holds {sorted(layers)}, only 'full_attention' works")
  if raw["model_type"] == "llama" and raw.get("sliding_window") is not None:
    raise UserError(f"{source}: sliding_window={raw['sliding_window']} is not supported for llama")


def _rope(raw: dict[str, Any], source: str) -> tuple[float, RopeScaling | None]:
  """Base and scaling from rope_parameters (transformers 5) or rope_theta and rope_scaling."""
  name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
  rope = dict(raw.get(name) or {})
  theta = rope.pop("rope_theta", raw.get("rope_theta"))
  if None not in (theta, raw.get("rope_theta")) and theta != raw["rope_theta"]:
    raise UserError(f"{source}: rope_theta={raw['rope_theta']} but {name}.rope_theta={theta}")
  theta = float(10000.0 if theta is None else theta)
  kind = rope.pop("rope_type", rope.pop("type", "default"))
  rope.pop("type", None)
  if rope.pop("partial_rotary_factor", 1.0) != 1.0:
    raise UserError(f"{source}: {name}.partial_rotary_factor must be 1.0")
  if kind not in ("default", "llama3"):
    raise UserError(f"{source}: {name}.rope_type={kind!r} is not supported (default, llama3)")
  wanted = _ROPE_LLAMA3 if kind == "llama3" else ()
  for key in (*[k for k in wanted if k not in rope], *[k for k in rope if k not in wanted]):
    problem = f"nothing reads {name}.{key}" if key in rope else f"{name}.{key} is missing"
    raise UserError(f"{source}: {problem} (rope_type {kind!r})")
  if kind == "default":
    return theta, None
  low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
  original = int(rope["original_max_position_embeddings"])
  return theta, RopeScaling(float(rope["factor"]), low, high, original)


def to_json(config: ModelConfig) -> dict[str, Any]:
  """A config.json that transformers 4 and 5 both read as the same model, without token ids."""
  if config.qkv_bias and config.qk_norm:
    raise UserError("qkv_bias and qk_norm together have no model type in transformers")
  kind = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
  scaling = None
  if config.rope_scaling is not None:
    s = config.rope_scaling
    values = (s.factor, s.low_freq_factor, s.high_freq_factor, s.original_max_position)
    scaling = {"rope_type": "llama3", **dict(zip(_ROPE_LLAMA3, values, strict=True))}
  return {
    "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind] + "ForCausalLM"],
    "model_type": kind,
    "vocab_size": config.vocab_size,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.intermediate_size,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "hidden_act": "silu",
    "rope_theta": config.rope_theta,
    "rope_scaling": scaling,
    "rms_norm_eps": config.norm_eps,
    "max_position_embeddings": config.max_position,
    "tie_word_embeddings": config.tie_embeddings,
  }
