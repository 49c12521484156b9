"""Image files that a user names: found, and read a few at a time."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cbkd_jax.data import decoding
from cbkd_jax.data.framing import Framing
from cbkd_jax.errors import UserError


class Read(NamedTuple):
  """A file, and what came of it.

  Attributes:
    path: the file's.
    image: uint8 [height, width, channels]; None: it can't be read.
    error: why not; empty where it can.
  """

  path: str
  image: np.ndarray | None
  error: str


def expand(arguments: Sequence[str]) -> list[str]:
  """Files by name; of a directory, its images.

  Args:
    arguments: paths of files and directories.

  Returns:
    Paths of files, in the order of the arguments; a directory's sorted, without
    hidden ones and those in its own directories.

  Raises:
    UserError: one is not there, or a directory without images.
  """
  return [path for given in arguments for path in _expanded(given)]


def _expanded(given: str) -> list[str]:
  path = Path(given)
  try:
    path.stat()
    if not path.is_dir():
      return [given]
    names = sorted(os.listdir(path))
  except OSError as e:
    raise UserError(f'{given}: {e.strerror}') from None
  images = [
    str(path / name)
    for name in names
    if name.lower().endswith(decoding.SUFFIXES)
    and not name.startswith('.')
    and (path / name).is_file()
  ]
  if not images:
    kinds = ', '.join(decoding.SUFFIXES)
    raise UserError(f'{given}: has no files that end with one of {kinds}')
  return images


def read(
  paths: Sequence[str], framing: Framing, batch_size: int
) -> Iterator[list[Read]]:
  """Reads images, with a thread per processor: decoding lets go of the GIL.

  Each is brought to its size at once: few are in memory as they are stored.

  Args:
    paths: of the files.
    framing: what the images become.
    batch_size: files at a time.

  Yields:
    So many files, in their order; the last time those that are left.
  """

  def one(path: str) -> Read:
    try:
      return Read(path, framing.read(Path(path).read_bytes(), path), '')
    except OSError as e:
      return Read(path, None, f'{path}: {e.strerror}')
    except UserError as e:
      return Read(path, None, str(e))

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(paths), batch_size):
      yield list(pool.map(one, paths[start : start + batch_size]))
