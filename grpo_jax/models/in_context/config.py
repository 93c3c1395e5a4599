"""Shape of an in-context transformer; every field is read by `in_context_layers.py`."""

import dataclasses

from grpo_jax.errors import UserError
from grpo_jax.models.moe.layer import MoEConfig
from grpo_jax.names import between, one_of

ACTIVATIONS = ("gelu", "leaky_relu")


@dataclasses.dataclass(frozen=True)
class InContextConfig:
  """Sizes. The defaults are DPT's (paper 27); T2MIR's differ by environment (paper 04).

  modalities: widths of the token kinds, as (S, A, 1) for states, actions and rewards; () is one
  kind. The first `lead` tokens are of kind 0 (T2MIR-DPT's query state), then the kinds take turns.
  A token of kind m is read from the first modalities[m] entries of x, so `inputs` is the widest.
  """

  inputs: int
  outputs: int
  positions: int  # rows of the learned table: more than the largest position
  hidden: int = 32
  layers: int = 4
  heads: int = 1
  ffn: int = 4
  activation: str = "gelu"  # the tanh form, as in GPT-2; or leaky_relu
  modalities: tuple[int, ...] = ()
  lead: int = 0
  embed_hidden: int = 0  # width of the embedders' hidden layer; 0: they are linear
  sinusoidal: bool = False  # fixed positions instead of a table
  attention_norm: bool = False  # a LayerNorm on what attention adds (T2MIR-AD)
  moe: MoEConfig | None = None
  moe_layers: tuple[int, ...] = (-1,)  # negative ones count from the end

  def __post_init__(self):
    for name in ("inputs", "outputs", "positions", "hidden", "layers", "heads", "ffn"):
      between(name, getattr(self, name), 1)
    if self.hidden % self.heads:
      raise UserError(f"hidden={self.hidden}: must be a multiple of heads={self.heads}")
    if self.sinusoidal and self.hidden % 2:
      raise UserError(f"hidden={self.hidden}: must be even with sinusoidal positions")
    one_of("activation", self.activation, ACTIVATIONS)
    if self.modalities and max(self.modalities) != self.inputs:
      raise UserError(f"inputs={self.inputs}: must be the largest of modalities={self.modalities}")
    if self.moe and any(not -self.layers <= i < self.layers for i in self.moe_layers):
      raise UserError(f"moe_layers={self.moe_layers}: there are layers 0 to {self.layers - 1}")

  @property
  def experts_at(self) -> tuple[int, ...]:
    """Layers with experts, rising; entry m of everything that is stacked over them."""
    return tuple(sorted({i % self.layers for i in self.moe_layers})) if self.moe else ()
