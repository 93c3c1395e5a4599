"""Benchmarks: `python -m experiments.bench [COMMAND] [options]`, `--help` after a command.

main               a GRPO step, SmolLM2's decoding and the small model against TRL, Tunix and
                   transformers; --only=tiny and so on for parts of it
decode             the decoding alone
tiny               the small model alone
prefix_attention   a gradient step with shared and with repeated prompts
in_context         online evaluation of an in-context learner against PyTorch
control            PPO on gymnax's CartPole
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
    elif command == "in_context":
      from experiments.bench import in_context

      in_context.main(rest)
    elif command == "control":
      from experiments.bench import control

      control.main(rest)
    elif command in ("main", "decode", "tiny"):
      from experiments.bench import runner

      runner.main(([] if command == "main" else [f"--only={command}"]) + rest)
    else:
      known = "main, decode, tiny, prefix_attention, in_context, control"
      raise UserError(f"{command}: use one of {known}")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
