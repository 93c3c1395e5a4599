"""Train any config.

  python -m experiments.train --config=configs/NAME.py[:variant] [--config.a.b=c] [--workdir=DIR]

DIR (default runs/NAME[-variant]) gets config.json, metrics.jsonl, checkpoints/, rollouts/ and
report.html; the same command resumes. The last line of stdout is `final: {json}`.
"""

import os
import sys
import traceback

from experiments.common.cli import parse
from grpo_jax.errors import UserError


def main(argv: list[str]) -> int:
  if {"-h", "--help"} & set(argv):
    print((__doc__ or "").strip())
    return 0
  try:
    config, workdir = parse(argv)
    # jax is imported after the flags are known to be right: a misspelt key answers at once.
    from grpo_jax.train import launch
  except UserError as error:
    return _failed(error)
  joined = False
  try:
    joined = launch.join_hosts()
    launch.launch(config, workdir)
  except UserError as error:
    return _failed(error, joined)
  except KeyboardInterrupt:
    print("interrupted: the same command resumes from the last checkpoint", file=sys.stderr)
    return 130
  except Exception:
    if not joined:
      raise
    traceback.print_exc()
    _leave(1)
  return 0


def _failed(error: UserError, joined: bool = False) -> int:
  where = f"process {os.getpid()}: " if joined else ""
  print(f"error: {where}{error}", file=sys.stderr)
  if joined:
    _leave(2)
  return 2


def _leave(code: int) -> None:
  """Ends at once: an orderly end would wait for the other processes, which wait for this one."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
