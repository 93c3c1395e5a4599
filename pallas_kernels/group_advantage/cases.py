"""Shapes that training runs have, and the same structure small enough for interpret mode."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Groups:
  """`prompts` groups of `size` rollouts; as a ragged batch, prompts * size rollouts."""

  name: str
  prompts: int
  size: int

  def small(self) -> "Groups":
    return dataclasses.replace(self, prompts=9 if self.prompts % 8 else 8, size=min(self.size, 16))


@dataclasses.dataclass(frozen=True)
class Rows:
  """`rows` of `tokens` tokens; packed: several rollouts a row, told apart by segments."""

  name: str
  rows: int
  tokens: int
  packed: bool = False

  def small(self) -> "Rows":
    return dataclasses.replace(self, rows=5 if self.rows % 8 else 8, tokens=self.tokens // 8 + 7)


GROUPS = (
  Groups("16 prompts of 8", 16, 8),
  Groups("500 prompts of 16", 500, 16),
  Groups("1024 prompts of 64", 1024, 64),
)
ROWS = (
  Rows("gsm8k", 512, 1024),
  Rows("packed", 60, 2048, packed=True),
  Rows("long", 256, 8192),
)
