"""config.json: both spellings of rope settings, and every field that must be refused."""

import json
from pathlib import Path

import pytest

from grpo_jax.errors import UserError
from grpo_jax.models import hf_config
from grpo_jax.models.config import RopeScaling

SMOLLM2 = {  # the published config.json of SmolLM2-135M-Instruct
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 576,
  "initializer_range": 0.041666666666666664,
  "intermediate_size": 1536,
  "is_llama_config": True,
  "max_position_embeddings": 8192,
  "mlp_bias": False,
  "model_type": "llama",
  "num_attention_heads": 9,
  "num_hidden_layers": 30,
  "num_key_value_heads": 3,
  "pad_token_id": 2,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_interleaved": False,
  "rope_scaling": None,
  "rope_theta": 100000,
  "tie_word_embeddings": True,
  "torch_dtype": "bfloat16",
  "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
  "transformers_version": "4.42.3",
  "use_cache": True,
  "vocab_size": 49152,
}
LLAMA3 = {
  "factor": 32.0,
  "high_freq_factor": 4.0,
  "low_freq_factor": 1.0,
  "original_max_position_embeddings": 8192,
  "rope_type": "llama3",
}


def test_published_smollm2_config_is_read_in_full():
  config = hf_config.from_json(SMOLLM2)
  assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (
    30,
    9,
    3,
    64,
  )
  assert (config.rope_theta, config.norm_eps, config.max_position) == (100000.0, 1e-5, 8192)
  assert config.tie_embeddings and not config.qkv_bias and not config.qk_norm


def test_old_and_new_spelling_of_rope_settings_give_the_same_config():
  old = SMOLLM2 | {"rope_theta": 5e5, "rope_scaling": LLAMA3}
  new = {k: v for k, v in SMOLLM2.items() if k not in ("rope_theta", "rope_scaling")}
  new["rope_parameters"] = LLAMA3 | {"rope_theta": 5e5}
  config = hf_config.from_json(old)
  assert config == hf_config.from_json(new)
  assert config.rope_theta == 5e5
  assert config.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)


def test_absent_fields_take_the_defaults_of_transformers():
  keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "model_type")
  small = {k: SMOLLM2[k] for k in (*keys, "num_attention_heads")}
  config = hf_config.from_json(small)
  assert (config.rope_theta, config.norm_eps, config.max_position) == (10000.0, 1e-6, 2048)
  assert config.num_kv_heads == 9 and not config.tie_embeddings
  qwen3 = hf_config.from_json(small | {"model_type": "qwen3", "num_key_value_heads": 3})
  assert qwen3.head_dim == 128 and qwen3.qk_norm and qwen3.max_position == 32768


@pytest.mark.parametrize(
  "changes, field",
  [
    ({"residual_multiplier": 0.22}, "residual_multiplier"),
    ({"num_local_experts": 8}, "num_local_experts"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"sliding_window": 512}, "sliding_window"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"rope_interleaved": True}, "rope_interleaved"),
    ({"model_type": "gemma3"}, "gemma3"),
    ({"model_type": None}, "model_type"),
    ({"hidden_size": None}, "hidden_size"),
    ({"vocab_size": "49152"}, "vocab_size"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ({"rope_scaling": LLAMA3 | {"attention_factor": 1.0}}, "attention_factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
    ({"rope_scaling": {"rope_type": "default", "factor": 8.0}}, "factor"),
    ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "rope_theta"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
  ],
)
def test_a_field_that_is_unread_or_not_computable_is_refused_by_name(changes, field):
  with pytest.raises(UserError, match=field) as error:
    hf_config.from_json(SMOLLM2 | changes, "x/config.json")
  assert "x/config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["llama_tied", "llama_untied", "llama3_rope", "qwen2", "qwen3"])
def test_written_config_is_read_back_the_same(family):
  raw = json.loads((Path(__file__).parent / "golden" / family / "config.json").read_text())
  config = hf_config.from_json(raw)
  assert hf_config.from_json(hf_config.to_json(config)) == config
