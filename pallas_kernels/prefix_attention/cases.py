"""Shapes of real models, shared by tests, compile checks and benchmarks."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
  """A call of `prefix_attention`. With completion = 0: of `prompt_attention`."""

  name: str
  rows: int  # N: prompts
  prompt: int  # padded length
  group: int
  completion: int
  heads: int
  kv_heads: int
  head_dim: int
  trunk: int = 0  # keys before all prompts
  packed: bool = False  # completions of any lengths in group * completion slots
  window: int | None = None
  softcap: float | None = None
  sink: bool = False

  @property
  def own(self) -> int:
    """X, completion tokens a row."""
    return self.group * self.completion

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Of q, k, v before the trunk is put in front."""
    s = self.prompt + self.own
    kv = (self.rows, s, self.kv_heads, self.head_dim)
    return {"q": (self.rows, s, self.heads, self.head_dim), "k": kv, "v": kv}

  @property
  def options(self) -> dict:
    """Keyword arguments but for `segment`, `trunk` and `implementation`."""
    return {
      "num_prefix": self.prompt,
      "group": 1 if self.packed else self.group,
      "window": self.window,
      "softcap": self.softcap,
      "sink": self.sink,
    }

  def pairs(self, heads: bool = True) -> int:
    """Scores that full-length rows need, the count of paper 59: L^2 / 2 + G T (L + T / 2)."""
    length = self.trunk + self.prompt
    count = self.prompt * (2 * length - self.prompt + 1) // 2
    count += self.group * self.completion * (2 * length + self.completion + 1) // 2
    return self.rows * count * (self.heads if heads else 1)

  def small(self) -> "Case":
    """The same structure, lengths and heads scaled down; no length is a multiple of a block."""
    return dataclasses.replace(
      self,
      rows=2,
      prompt=21,
      group=min(self.group, 3),
      completion=min(self.completion, 13),
      heads=min(self.kv_heads, 2) * (self.heads // self.kv_heads),
      kv_heads=min(self.kv_heads, 2),
      head_dim=self.head_dim // 8,
      trunk=min(self.trunk, 6),
      window=None if self.window is None else 9,
      softcap=None if self.softcap is None else 2.0,
    )


CASES = (
  Case("smollm2-135m", 8, 512, 8, 256, 9, 3, 64),
  Case("qwen3-0.6b-trunk", 4, 256, 8, 1024, 16, 8, 128, trunk=640),
  Case("llama-3.1-8b", 1, 4096, 16, 512, 32, 8, 128),
  Case("qwen2.5-7b-packed", 2, 1024, 8, 1000, 28, 4, 128, packed=True),
  Case("gemma-2-2b", 1, 4096, 4, 2048, 8, 4, 256, window=4096, softcap=50.0),
  Case("mistral-7b-packed", 1, 2048, 8, 1024, 32, 8, 128, packed=True, window=1024),
  Case("relic-sink", 8, 1024, 4, 256, 8, 8, 32, sink=True),
  Case("llama-3.1-8b-prompt", 2, 4096, 1, 0, 32, 8, 128, trunk=512),
)


@dataclasses.dataclass(frozen=True)
class DecodeCase:
  """A call of `decode_attention`."""

  name: str
  rows: int  # N: prompts
  slots: int  # S
  queries: int  # Q tokens a slot
  prompt: int  # P columns of the prefix cache
  columns: int  # C columns of a slot's own cache
  heads: int
  kv_heads: int
  head_dim: int
  softcap: float | None = None
  sink: bool = False

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    n, s, q, d = self.rows, self.slots, self.queries, self.head_dim
    prefix = (n, self.kv_heads, self.prompt, d)
    own = (n, self.kv_heads, s, self.columns, d)
    return {
      "q": (n, s, q, self.heads, d),
      "k_prefix": prefix,
      "v_prefix": prefix,
      "prefix_length": (n,),
      "k": own,
      "v": own,
      "visible": (n, s, q, self.columns),
    }

  @property
  def options(self) -> dict:
    return {"softcap": self.softcap, "sink": self.sink}

  def small(self) -> "DecodeCase":
    return dataclasses.replace(
      self,
      rows=2,
      slots=min(self.slots, 3),
      prompt=21,
      columns=19,
      heads=min(self.kv_heads, 2) * (self.heads // self.kv_heads),
      kv_heads=min(self.kv_heads, 2),
      head_dim=self.head_dim // 8,
      softcap=None if self.softcap is None else 2.0,
    )


DECODE_CASES = (
  DecodeCase("smollm2-135m", 16, 8, 1, 512, 256, 9, 3, 64),
  DecodeCase("qwen3-0.6b", 4, 16, 1, 1024, 1024, 16, 8, 128),
  DecodeCase("llama-3.1-8b", 2, 16, 1, 4096, 512, 32, 8, 128),
  DecodeCase("qwen2.5-7b-draft", 4, 8, 4, 2048, 1024, 28, 4, 128),
  DecodeCase("gemma-2-2b", 1, 8, 1, 4096, 1024, 8, 4, 256, softcap=50.0),
  DecodeCase("relic-sink", 8, 4, 1, 1024, 256, 8, 8, 32, sink=True),
)
