"""SIGTERM and SIGINT end a run at the next step's end, saved."""

import itertools
import os
import signal
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


def listen() -> Callable[[], bool]:
  """From now on the two signals are noted instead of ending the process.

  A second SIGINT interrupts at once, for someone who does not want to wait.
  With several processes, joined before, a signal to one of them is known to
  all, and all stop at the same step.

  Returns:
    A function that says whether one of them has arrived. Every process must
    call it equally often.
  """
  arrived = []

  def note(number, frame):
    del frame
    arrived.append(number)
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)
      if jax.distributed.is_initialized():
        os.kill(os.getpid(), signal.SIGTERM)  # which all hear of

  signal.signal(signal.SIGINT, note)
  if not jax.distributed.is_initialized():
    signal.signal(signal.SIGTERM, note)
    return lambda: bool(arrived)

  # SIGTERM is JAX's own since the processes joined: when one process gets it,
  # all agree on a number of calls that none has made yet.
  calls, stopped = itertools.count(), []

  def interrupted() -> bool:
    if not stopped and multihost_utils.reached_preemption_sync_point(
      next(calls)
    ):
      stopped.append(True)
    return bool(stopped)

  return interrupted
