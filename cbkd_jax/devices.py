"""How much memory is free, on a device and on the host."""

from pathlib import Path
from typing import Any


def free_bytes(device: Any) -> int | None:
  """Free memory of a device; None where it doesn't say.

  Args:
    device: a JAX device; a CPU's memory is the host's.
  """
  if device.platform == 'cpu':
    return free_host_bytes()
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats['bytes_in_use']


def free_host_bytes() -> int | None:
  """Memory that a process may still take; None off Linux."""
  try:
    lines = Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  for line in lines:
    name, _, value = line.partition(':')
    if name == 'MemAvailable':
      return int(value.split()[0]) * 1024
  return None
