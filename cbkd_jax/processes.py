"""Several processes, one run: joining, agreeing, losing each other.

JAX's own runtime does the work (`jax.distributed`). Every process runs the
same program; what one of them alone finds out (a file that can't be read, a
workdir that is in use) the others hear of at the next `together`.
"""

import ctypes
import hashlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cbkd_jax.errors import EXIT_UNREACHABLE, Unreachable, UserError

T = TypeVar('T')

# JAX's default is 100. Heartbeats come from a thread of the runtime: neither
# compiling nor Python holds them up.
_HEARTBEAT_SECONDS = 30
_MESSAGE_BYTES = 2048  # of an error that one process tells the others
_NOT_A_CLUSTER = 'coordinator_address should be defined'
# What the runtime's errors say when another process is gone.
_LOST = re.compile(
  r'gloo|nccl|coordination|barrier|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|'
  r'Connection (closed|reset)|Socket closed',
  re.IGNORECASE,
)


def join(
  coordinator: str | None,
  processes: int | None,
  process_id: int | None,
  timeout: int,
) -> None:
  """Makes this process one of several; must come before JAX is used.

  Without arguments JAX finds out by itself where it can: on TPU pods, under
  Slurm and Open MPI, on GKE, or by JAX_COORDINATOR_ADDRESS. Elsewhere this
  process is then the only one.

  Args:
    coordinator: host:port of process 0, the same for all.
    processes: how many there are.
    process_id: which one this is, from 0.
    timeout: seconds to wait for the others.

  Raises:
    UserError: the three don't fit together.
    Unreachable: the others have not come.
  """
  _check(coordinator, processes, process_id, timeout)
  if coordinator is not None and process_id != 0:
    _wait_for(coordinator, timeout)
  _end_on_abort(coordinator)
  try:
    jax.distributed.initialize(
      coordinator,
      processes,
      process_id,
      initialization_timeout=timeout,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except ValueError as error:
    if _NOT_A_CLUSTER in str(error):
      signal.signal(signal.SIGABRT, signal.SIG_DFL)
      return
    raise UserError(f'{_at(coordinator)}: {error}') from None
  except RuntimeError as error:
    raise Unreachable(f'{_at(coordinator)}: {error}') from None


def _at(coordinator: str | None) -> str:
  if coordinator is None:
    return 'joining the other processes of the cluster'
  return f'--coordinator={coordinator}'


def _check(
  coordinator: str | None,
  processes: int | None,
  process_id: int | None,
  timeout: int,
) -> None:
  if timeout < 1:
    raise UserError(f'--join_timeout={timeout}: must be at least 1')
  given = {
    '--coordinator': coordinator,
    '--processes': processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return
  if missing:
    raise UserError(
      f'{missing[0]} is missing; --coordinator, --processes and --process_id '
      'go together'
    )
  if processes < 1:
    raise UserError(f'--processes={processes}: must be at least 1')
  if not 0 <= process_id < processes:
    raise UserError(
      f'--process_id={process_id}: must be from 0 to {processes - 1}, below '
      f'--processes={processes}'
    )
  if not re.fullmatch(r'.+:\d+', coordinator) or not (
    0 < int(coordinator.rpartition(':')[2]) < 2**16
  ):
    raise UserError(f'--coordinator={coordinator}: must be HOST:PORT')


def _wait_for(coordinator: str, timeout: int) -> None:
  """Waits until process 0 listens: JAX would end without a clear word."""
  host, _, port = coordinator.rpartition(':')
  until = time.monotonic() + timeout
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), 5).close()
      return
    except OSError as error:
      if time.monotonic() > until:
        raise Unreachable(
          f'--coordinator={coordinator}: process 0 was not there within '
          f'--join_timeout={timeout} seconds: {error}'
        ) from None
    time.sleep(0.2)


def _end_on_abort(coordinator: str | None) -> None:
  """Gives an exit code to how JAX ends a process that has lost the others.

  Its runtime aborts, from a thread of its own, where Python's handlers of
  signals don't run: this is one for the C library.
  """
  global _handler
  line = f'error: {lost(coordinator)}\n'.encode()

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def end(number: int) -> None:
    del number
    os.write(2, line)
    os._exit(EXIT_UNREACHABLE)

  _handler = end  # as long as it may be called
  ctypes.CDLL(None).signal(int(signal.SIGABRT), end)


_handler: Any = None


def lost(coordinator: str | None = None) -> str:
  """What is said where the others can't be reached."""
  at = f' (coordinator {coordinator})' if coordinator else ''
  return (
    f'the other processes can no longer be reached{at}; the last checkpoint '
    'is kept, the same commands go on'
  )


def is_lost(error: BaseException) -> bool:
  """Whether an error of the runtime means that another process is gone."""
  return jax.process_count() > 1 and bool(_LOST.search(str(error)))


def joined() -> bool:
  """Whether this process is one of several."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this is the process that writes logs and summaries."""
  return jax.process_index() == 0


def leave() -> None:
  """Ends the connection, once all the others do so too."""
  jax.distributed.shutdown()


def together(fn: Callable[[], T]) -> T:
  """Runs `fn` in every process; fails in all of them if it fails in one.

  No process goes on before all are done.

  Args:
    fn: may find that the user has made a mistake.

  Returns:
    What `fn` returns in this process.

  Raises:
    UserError: of the first process that has one.
  """
  if jax.process_count() == 1:
    return fn()
  result, failure = None, None
  try:
    result = fn()
  except UserError as error:
    failure = error
  said = _everyone_says('' if failure is None else str(failure))
  for process, message in enumerate(said):
    if message:
      same = all(other == message for other in said)
      who = '' if same else f'process {process}: '
      raise _agreed(UserError(f'{who}{message}')) from failure
  return result


def check_same(values: Mapping[str, Any]) -> None:
  """Refuses processes that were started with different configs.

  Raises:
    UserError: in all of them.
  """
  text = json.dumps(values, sort_keys=True, default=str)
  digests = _everyone_says(hashlib.sha256(text.encode()).hexdigest())
  other = [i for i, d in enumerate(digests) if d != digests[0]]
  if other:
    raise _agreed(
      UserError(
        f'process {other[0]} has another config than process 0; all processes '
        'must be started with the same command, but for --process_id'
      )
    )


def _agreed(error: UserError) -> UserError:
  error.alone = False
  return error


def most(value: int) -> int:
  """The largest of all processes' values."""
  if jax.process_count() == 1:
    return value
  return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def first_says(text: str) -> str:
  """What the first process has said, for all; at most 2048 bytes."""
  return _everyone_says(text)[0]


def _everyone_says(message: str) -> list[str]:
  """All processes' messages, cut to what fits."""
  if jax.process_count() == 1:
    return [message]
  data = message.encode()[:_MESSAGE_BYTES]
  row = np.zeros(_MESSAGE_BYTES, np.uint8)
  row[: len(data)] = np.frombuffer(data, np.uint8)
  rows = multihost_utils.process_allgather(row)
  return [
    bytes(np.asarray(r)).rstrip(b'\0').decode(errors='ignore') for r in rows
  ]
