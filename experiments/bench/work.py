"""The arithmetic that a step needs at least, by formula: the same for every framework.

It is that of the shared-prompt form: a prompt is computed once a group, the first new token is
predicted once a prompt, the last new token is never an input. Whoever does more (prompts repeated,
logits recomputed) shows a smaller share of the matmul bound, which is the point of the share.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
  hidden: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  ffn: int
  vocab: int

  @property
  def layer_params(self) -> int:
    """Matrix entries of one layer: q, o, k, v and the gated MLP."""
    attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
    return attention + 3 * self.hidden * self.ffn


SMOLLM2 = Shape(576, 30, 9, 3, 64, 1536, 49152)  # SmolLM2-135M


def llama(a) -> Shape:
  """From the command line of a step; as many key heads as heads."""
  return Shape(a.hidden, a.layers, a.heads, a.heads, a.hidden // a.heads, a.ffn, a.vocab)


def positions(prompts: int, group: int, prompt: int, new: int) -> int:
  """Positions that pass through the layers."""
  return prompts * (prompt + group * (new - 1))


def predictions(prompts: int, group: int, new: int) -> int:
  """Positions that need logits."""
  return prompts * (1 + group * (new - 1))


def pairs(prompts: int, group: int, prompt: int, new: int) -> int:
  """(query, key) pairs of causal attention."""
  own = new - 1
  suffix = own * prompt + own * (own + 1) // 2
  return prompts * (prompt * (prompt + 1) // 2 + group * suffix)


def forward(s: Shape, *, prompts: int, group: int, prompt: int, new: int) -> float:
  """FLOPs of one pass: 2 an entry and position, 4 a head dimension and pair."""
  layers = s.layers * (
    2.0 * s.layer_params * positions(prompts, group, prompt, new)
    + 4.0 * s.heads * s.head_dim * pairs(prompts, group, prompt, new)
  )
  return layers + 2.0 * s.hidden * s.vocab * predictions(prompts, group, new)


def step(s: Shape, **sizes: int) -> float:
  """A GRPO step: one pass to generate, and forward and backward (three passes) to train."""
  return 4 * forward(s, **sizes)


def repeated(s: Shape, *, prompts: int, group: int, prompt: int, new: int) -> float:
  """`forward` where every completion has a copy of its prompt: G groups of one."""
  return forward(s, prompts=prompts * group, group=1, prompt=prompt, new=new)
