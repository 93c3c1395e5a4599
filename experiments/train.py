"""Train any config.

  python -m experiments.train --config=configs/NAME.py[:variant] [--config.a.b=c] [--workdir=DIR]

DIR (default runs/NAME[-variant]) gets config.json, metrics.jsonl, checkpoints/, rollouts/ and
report.html; the same command resumes. The last line of stdout is `final: {json}`.
"""

import sys

from experiments.cli import parse
from grpo_jax.errors import UserError


def main(argv: list[str]) -> int:
  try:
    config, workdir = parse(argv)
    # jax is imported after the flags are known to be right: a misspelt key answers at once.
    from grpo_jax.train import launch

    launch.launch(config, workdir)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted: the same command resumes from the last checkpoint", file=sys.stderr)
    return 130
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
