"""Processes of a few CPU devices each, on this machine: for tests.

A process that JAX has joined to others takes SIGTERM for a notice and may wait
for the others: whatever happens, all are ended by force.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_SECONDS = 120  # until a test that hangs is ended


def free_port() -> int:
  """One that nobody listens at."""
  with socket.socket() as found:
    found.bind(('localhost', 0))
    return found.getsockname()[1]


@contextlib.contextmanager
def started(
  commands: Sequence[Sequence[Any]],
  environments: Sequence[Mapping[str, str]] | None = None,
  devices: int = 1,
) -> Iterator[list[subprocess.Popen]]:
  """Runs `python ...` once for each list of arguments.

  Args:
    commands: the arguments.
    environments: what each process has in its environment besides.
    devices: of each process.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  environment = {
    **os.environ,
    'PYTHONPATH': f'{HERE.parent}:{HERE}',
    # Of several flags the last one counts.
    'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={devices}',
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true',  # quick to compile
  }
  processes = [
    subprocess.Popen(
      [sys.executable, *map(str, command)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**environment, **own},
    )
    for command, own in zip(commands, environments or [{}] * len(commands))
  ]

  def end():
    for process in processes:
      process.kill()

  timer = threading.Timer(_SECONDS, end)
  timer.start()
  try:
    yield processes
  finally:
    timer.cancel()
    end()
    for process in processes:
      process.communicate()


def train(*arguments: str) -> list[str]:
  """The command of a process that finds the others by itself, if any."""
  return ['-m', 'cbkd_jax.train', f'--config={HERE}/tiny_run.py', *arguments]


def under_slurm(count: int) -> list[dict[str, str]]:
  """What Slurm would say to each of `count` processes on this machine."""
  # Slurm's port follows from the job's number.
  job = str(free_port())
  return [
    {
      'SLURM_JOB_ID': job,
      'SLURM_STEP_NODELIST': 'localhost',
      'SLURM_NTASKS': str(count),
      'SLURM_PROCID': str(i),
      'SLURM_LOCALID': str(i),
    }
    for i in range(count)
  ]


def train_together(count: int, *arguments: str) -> list[list[str]]:
  """The commands of `count` processes that train together."""
  port = free_port()
  return [
    [
      *train(*arguments),
      f'--coordinator=localhost:{port}',
      f'--processes={count}',
      f'--process_id={i}',
      '--join_timeout=60',
    ]
    for i in range(count)
  ]
