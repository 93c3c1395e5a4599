"""Which stored tensor fills which parameter, for safetensors and GGUF alike."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig

# ours: (safetensors, GGUF); {} is the layer.
NAMES = {
  "embed": ("model.embed_tokens.weight", "token_embd.weight"),
  "norm": ("model.norm.weight", "output_norm.weight"),
  "head": ("lm_head.weight", "output.weight"),
}
LAYER_NAMES = {
  "attn_norm": ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
  "q": ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
  "k": ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
  "v": ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
  "o": ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
  "q_bias": ("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
  "k_bias": ("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
  "v_bias": ("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
  "q_norm": ("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight"),
  "k_norm": ("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight"),
  "mlp_norm": ("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
  "gate": ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
  "up": ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
  "down": ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
}
SAFETENSORS, GGUF = 0, 1


def shapes(config: ModelConfig) -> dict:
  """The parameter tree of `ModelConfig` with a shape at each leaf."""
  d, f, hd, count = config.hidden_size, config.intermediate_size, config.head_dim, config.num_layers
  q, kv = config.num_heads * hd, config.num_kv_heads * hd
  layers = {
    "attn_norm": (d,),
    "q": (d, q),
    "k": (d, kv),
    "v": (d, kv),
    "o": (q, d),
    "mlp_norm": (d,),
    "gate": (d, f),
    "up": (d, f),
    "down": (f, d),
  }
  if config.qkv_bias:
    layers |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
  if config.qk_norm:
    layers |= {"q_norm": (hd,), "k_norm": (hd,)}
  tree = {"embed": (config.vocab_size, d), "norm": (d,)}
  if not config.tie_embeddings:
    tree["head"] = (config.vocab_size, d)
  return tree | {"layers": {name: (count, *shape) for name, shape in layers.items()}}


def stored_names(config: ModelConfig, kind: int) -> set[str]:
  """Names of all tensors that `config` asks for in a file of `kind`."""
  tree = shapes(config)
  names = {NAMES[name][kind] for name in tree if name != "layers"}
  for name in tree["layers"]:
    names |= {LAYER_NAMES[name][kind].format(i) for i in range(config.num_layers)}
  return names


def assemble(
  config: ModelConfig,
  kind: int,
  names: set[str],
  read: Callable[[str], np.ndarray],
  dtype: np.dtype,
  source: str,
) -> dict:
  """Parameters of `config` from a file's tensors.

  `names` is what the file holds, `read(name)` gives one tensor as stored: a matrix is [out, in].
  A tensor that is missing, has another shape, or that nothing reads raises UserError.
  """
  wanted = stored_names(config, kind)
  for name in sorted(wanted - names):
    raise UserError(f"{source}: tensor {name!r} is missing; the file is incomplete")
  for name in sorted(names - wanted):
    raise UserError(
      f"{source}: tensor {name!r} has no place in this decoder (bias, adapter or expert weights?);"
      " the model is not supported"
    )
  tree = shapes(config)

  def fill(target: np.ndarray, name: str, transpose: bool):
    value = read(name)
    value = value.T if transpose else value
    if value.shape != target.shape:
      raise UserError(f"{source}: tensor {name!r} has shape {value.shape}, expected {target.shape}")
    target[...] = value

  top = {name: np.empty(s, dtype) for name, s in tree.items() if name != "layers"}
  layers = {name: np.empty(s, dtype) for name, s in tree["layers"].items()}
  jobs = [(target, NAMES[name][kind], False) for name, target in top.items()]
  for name, target in layers.items():
    stored = LAYER_NAMES[name][kind]
    jobs += [(target[i], stored.format(i), target.ndim == 3) for i in range(config.num_layers)]
  # numpy releases the lock while it converts: two cores load a file in half the time.
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    for done in [pool.submit(fill, *job) for job in jobs]:
      done.result()
  return {**top, "layers": layers}


def disassemble(config: ModelConfig, params: dict, dtype: np.dtype) -> dict[str, np.ndarray]:
  """The inverse of `assemble` for safetensors: name -> array, matrices [out, in]."""
  tensors = {}
  for name, shape in shapes(config).items():
    if name != "layers":
      tensors[NAMES[name][SAFETENSORS]] = _checked(params, name, shape).astype(dtype)
  for name, shape in shapes(config)["layers"].items():
    stacked = _checked(params["layers"], name, shape)
    for i in range(config.num_layers):
      layer = stacked[i].T if len(shape) == 3 else stacked[i]
      key = LAYER_NAMES[name][SAFETENSORS].format(i)
      tensors[key] = np.ascontiguousarray(layer.astype(dtype))
  return tensors


def _checked(tree: dict, name: str, shape: tuple[int, ...]) -> np.ndarray:
  if name not in tree or tuple(tree[name].shape) != shape:
    found = tuple(tree[name].shape) if name in tree else None
    raise UserError(f"params[{name!r}] has shape {found}, the config asks for {shape}")
  return np.asarray(tree[name])
