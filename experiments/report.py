"""Rebuilds the report of a run: `python -m experiments.report DIR [--plot FILE.png]`."""

import argparse
import sys

from grpo_jax.errors import UserError
from grpo_jax.run import report


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
  parser.add_argument("workdir", help="folder of the run: its --workdir")
  parser.add_argument("--plot", metavar="FILE", help="also draw held-out accuracy as a PNG")
  args = parser.parse_args(argv)
  try:
    print(report.write_report(args.workdir))
    if args.plot:
      drawn = report.plots(args.workdir, args.plot)
      print(drawn or "no plot: matplotlib is not installed, or the run has no evaluation")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
