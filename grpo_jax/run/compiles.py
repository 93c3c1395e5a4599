"""Counts compilations: a run compiles one program a bucket and then none."""

from collections.abc import Callable

import jax

_total = 0
_listening = False


def _listen(event: str, duration_secs: float, **kwargs) -> None:
  global _total
  del duration_secs, kwargs
  if "backend_compile" in event:
    _total += 1


def count_compiles() -> Callable[[], int]:
  """A function that tells how many programs were compiled since this call."""
  global _listening
  if not _listening:
    jax.monitoring.register_event_duration_secs_listener(_listen)
    _listening = True
  start = _total
  return lambda: _total - start
