"""The trained policy as a folder that another run, or transformers, loads: `config.export`."""

from pathlib import Path

import jax

from grpo_jax import sharding
from grpo_jax.errors import UserError
from grpo_jax.models import safetensors_file


def _taken(folder: Path) -> bool:
  return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def check(c, first: int) -> None:
  """Before the loop: refuses a folder that the end could not write; `first`: steps already made."""
  if c.export and first < c.steps and _taken(Path(c.export)):
    raise UserError(f"export={c.export}: exists and is not empty; name another folder")


def export(c, parts, state, say) -> None:
  """Writes config, weights and tokenizer to `c.export`; nothing if it is "".

  The value head is left out: it belongs to the run, not to the model. A finished run that is
  started again leaves the folder as it is.
  """
  if not c.export:
    return
  if _taken(Path(c.export)):
    say(f"export: {c.export} exists already; left as it is")
    return
  params = sharding.to_host({k: v for k, v in state.params.items() if k != "value"})
  if jax.process_index() == 0:
    safetensors_file.save(c.export, parts.sampling.config, params, parts.sampling.tokenizer)
    say(f"exported to {c.export}")
