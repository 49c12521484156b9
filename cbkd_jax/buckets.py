"""Directories on a disk or in a bucket, `gs://BUCKET/DIRECTORY`.

A path in a bucket is an `etils.epath.Path`, one on a disk a `pathlib.Path`;
both have the same methods. In a bucket there are only whole objects: none is
appended to, renamed, or seen before it is complete, and what looks like a
directory is a common beginning of their names.
"""

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from cbkd_jax.errors import UserError

_SCHEME = 'gs://'


def path(text: str | Path, field: str) -> Path:
  """The directory that a user names.

  Args:
    text: a directory or an address.
    field: the flag or field, for the message.

  Raises:
    UserError: the address is of another kind, or can't be read from here.
  """
  text = str(text)
  if not text.startswith(_SCHEME):
    if '://' in text:
      raise UserError(
        f'{field} = {text!r}: must be a directory or {_SCHEME}BUCKET/DIRECTORY'
      )
    return Path(text).expanduser()
  bucket, _, directory = text.removeprefix(_SCHEME).partition('/')
  if not (bucket and directory.strip('/')):
    raise UserError(f'{field} = {text!r}: must be {_SCHEME}BUCKET/DIRECTORY')
  if importlib.util.find_spec('gcsfs') is None:
    raise UserError(
      f'{field} = {text!r}: buckets need gcsfs; pip install gcsfs'
    )
  _set_up()
  found = epath.Path(text)
  with told(found, field):
    found.exists()
  return found


def _set_up() -> None:
  """Before gcsfs is first used."""
  import fsspec

  # TensorStore writes beside it, and other processes do: what was listed once
  # may have changed.
  settings = fsspec.config.conf.setdefault('gcs', {})
  settings.setdefault('use_listings_cache', False)
  # It logs with a traceback what it raises anyway.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)


@contextlib.contextmanager
def told(path: Path, field: str) -> Iterator[None]:
  """Tells in one line why a bucket can't be used.

  Args:
    path: what is used; on a disk nothing is changed.
    field: the flag or field, for the message.

  Raises:
    UserError: whatever library looks for credentials or connects has failed.
  """
  try:
    yield
  except Exception as error:
    if not is_bucket(path):
      raise
    reason = ' '.join(str(error).split())[:160]
    kind = type(error).__name__
    raise UserError(f'{field} = {path}: {kind}: {reason}') from None


def is_bucket(path: Path) -> bool:
  """Whether it is in a bucket."""
  return str(path).startswith(_SCHEME)


def absolute(path: Path) -> Path:
  """The same path from the root; epath would look for a bucket on disk."""
  return path if is_bucket(path) else path.absolute()


def copy_tree(source: Path, target: Path) -> None:
  """Copies a directory, from or to a bucket too.

  Args:
    source: the directory.
    target: the copy; is made, or added to.
  """
  source, target = epath.Path(source), epath.Path(target)
  target.mkdir(parents=True, exist_ok=True)
  for entry in source.iterdir():
    if entry.is_dir():
      copy_tree(entry, target / entry.name)
    else:
      entry.copy(target / entry.name, overwrite=True)


def remove_tree(path: Path) -> None:
  """Removes a directory and all that is in it."""
  epath.Path(path).rmtree()
