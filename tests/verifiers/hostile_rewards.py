"""Reward functions that do what the completion says: imported by the reward processes."""

import contextlib
import os
import signal
import sys
import time

HOARD = []


def obey(completion, problem):
  """1 for the right answer; else whatever harm the completion names."""
  if completion == problem.answer:
    return 1.0
  if completion == "none":
    return None
  if completion == "loop":
    while True:
      pass
  if completion == "swallow":
    while True:
      with contextlib.suppress(BaseException):
        time.sleep(0.01)
  if completion == "memory":
    HOARD.append(bytearray(2**33))
  if completion == "hoard":
    while True:
      HOARD.append(bytearray(2**24))
  if completion == "raise":
    raise ValueError("reward function says no")
  if completion == "recurse":
    return obey_forever(0)
  if completion == "exit":
    os._exit(0)
  if completion == "sys.exit":
    sys.exit(3)
  if completion == "segfault":
    os.kill(os.getpid(), signal.SIGSEGV)
  if completion == "kill group":
    os.kill(0, signal.SIGKILL)
  if completion == "kill server":
    os.kill(os.getppid(), signal.SIGKILL)
  if completion == "print":
    print("noise " * 1000)
  if completion == "nan":
    return float("nan")
  if completion == "text":
    return "good"
  if completion == "grandchild":
    if os.fork() == 0:
      time.sleep(600)
    time.sleep(600)
  if completion == "scribble":
    for fd in range(3, 64):
      with contextlib.suppress(OSError):
        os.write(fd, b'{"row": 0, "parts": [1.0]}\nnonsense\n')
  if completion == "modules":
    return float("jax" in sys.modules or "numpy" in sys.modules)
  return 0.0


def obey_forever(n):
  return obey_forever(n + 1)


def evaluates(completion, problem):
  """What no reward function should do, and some do."""
  return float(eval(completion) == int(problem.answer))


def half(completion, problem, value=0.5):
  return value


not_a_function = 3
