"""SIGTERM and SIGINT end a run at the next step's end, saved."""

import signal
from collections.abc import Callable


def listen() -> Callable[[], bool]:
  """From now on the two signals are noted instead of ending the process.

  A second SIGINT interrupts at once, for someone who does not want to wait.

  Returns:
    A function that says whether one of them has arrived.
  """
  arrived = []

  def note(number, frame):
    del frame
    arrived.append(number)
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)

  signal.signal(signal.SIGTERM, note)
  signal.signal(signal.SIGINT, note)
  return lambda: bool(arrived)
