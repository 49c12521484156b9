"""Where a process's time goes: importing, compiling, running.

Importing lasts from the package's own first line until a command, or a run,
has all its modules. Compiling is any time after that in which JAX traced,
lowered or compiled some program, or read it from the compilation cache,
whatever else went on beside it in other threads. Running is the rest.
"""

import threading
import time

import jax

import cbkd_jax

# What JAX calls the phases of compiling; with a JAX that calls them otherwise
# the time counts as running.
_COMPILING = '/jax/core/compile/'


class Covered:
  """Seconds covered by spans of time, nested or overlapping as they may be."""

  def __init__(self):
    self._spans: list[tuple[float, float]] = []  # disjoint, in order

  def add(self, start: float, end: float) -> None:
    """Adds a span that ends after all those before it have."""
    while self._spans and self._spans[-1][1] >= start:
      start = min(start, self._spans.pop()[0])
    self._spans.append((start, end))

  def seconds(self) -> float:
    """The length of what is covered."""
    return sum(end - start for start, end in self._spans)


class _Process:
  """The one process that this is."""

  def __init__(self):
    self.imported: float | None = None
    self.compiling = Covered()
    self.lock = threading.Lock()

  def note(self, event: str, duration: float, **_) -> None:
    if not event.startswith(_COMPILING):
      return
    with self.lock:
      now = time.monotonic()
      # JAX measures by the time of day, which may be set meanwhile.
      start = max(now - max(duration, 0.0), self.imported)
      self.compiling.add(start, now)


_process = _Process()


def begin() -> None:
  """Says that the imports are over; only the first call counts."""
  if _process.imported is None:
    _process.imported = time.monotonic()
    jax.monitoring.register_event_duration_secs_listener(_process.note)


def seconds() -> dict[str, float]:
  """This process's seconds so far, `begin` having been called.

  Returns:
    'import_seconds', 'compile_seconds' and 'run_seconds', which add up to
    the time since the package was first imported.
  """
  with _process.lock:
    now = time.monotonic()
    compiling = _process.compiling.seconds()
  return {
    'import_seconds': _process.imported - cbkd_jax.BEGAN,
    'compile_seconds': compiling,
    'run_seconds': now - _process.imported - compiling,
  }
