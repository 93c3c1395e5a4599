"""Reward functions of the tiny runs, imported by the reward processes."""

import os
import signal
import time


def low_digits(completion, problem):
  """Share of the digits 0 to 4: a random model has some, so groups differ and it can learn."""
  del problem
  return sum(c in "01234" for c in completion) / max(len(completion), 1)


def each_line(completion, problem):
  """One number a piece between pluses: 1 for pieces of odd length."""
  del problem
  return [len(piece) % 2 for piece in completion.split("+")]


def hostile(completion, problem):
  """What a completion begins with decides what goes wrong."""
  first = completion[:1]
  if first in "01":
    while True:
      time.sleep(0.01)
  if first in "23":
    raise ValueError(f"cannot judge {completion!r}")
  if first == "4":
    os.kill(os.getpid(), signal.SIGSEGV)
  if first == "5":
    return float(len(bytearray(2**36)))
  return low_digits(completion, problem)
