"""Benchmarks: `python -m experiments.bench [main | decode | prefix_attention] [options]`.

main               a GRPO step and SmolLM2's decoding against TRL, Tunix and transformers
decode             the decoding alone
prefix_attention   a gradient step with shared and with repeated prompts
"""

import sys

from grpo_jax.errors import UserError


def main(argv: list[str]) -> int:
  command, rest = (argv[0], argv[1:]) if argv and argv[0][:1] != "-" else ("main", argv)
  if argv[:1] in (["-h"], ["--help"]):
    print(__doc__)
    return 0
  try:
    if command == "prefix_attention":
      from experiments.bench import prefix_attention

      prefix_attention.main(rest)
    elif command in ("main", "decode"):
      from experiments.bench import runner

      only = ["--only=decode", "--out=runs/bench/decode.json"] if command == "decode" else []
      runner.main(only + rest)
    else:
      raise UserError(f"{command}: use one of main, decode, prefix_attention")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
