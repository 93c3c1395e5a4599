"""Shape of a decoder of the Llama family; every field is read by `decoder.py`."""

import dataclasses

from grpo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3.1's frequency scaling (rope_type "llama3")."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """SmolLM2, Llama 3.x, Qwen2.5 (qkv_bias) and Qwen3 (qk_norm) are settings of one decoder.

  Parameters are a nested dict of arrays, layers stacked on a leading axis L. Matrices are
  [inputs, outputs]; only `embed` and `head` are [V, D]:
    embed [V, D]; norm [D]; head [V, D] (absent if tie_embeddings);
    layers: attn_norm [L, D]; q [L, D, H*hd]; k, v [L, D, K*hd]; o [L, H*hd, D];
            q_bias [L, H*hd], k_bias, v_bias [L, K*hd] (if qkv_bias);
            q_norm, k_norm [L, hd] (if qk_norm);
            mlp_norm [L, D]; gate, up [L, D, F]; down [L, F, D]
  q and k rows are in the Hugging Face order (rotate-half), as in its safetensors.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-5
  max_position: int = 2048  # longest prompt + completion; checked before a run is compiled
  tie_embeddings: bool = False
  qkv_bias: bool = False
  qk_norm: bool = False

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
      )
    if self.head_dim % 2:
      raise UserError(f"head_dim={self.head_dim} must be even for rotary embeddings")
